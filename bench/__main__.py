"""The command line: ``python -m bench``."""

from __future__ import annotations

import shlex
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from . import asking, machine, observing, picture, placement, pythons, report
from .asked import LIMIT, MEMORY
from .cases import CASES, KERNEL_CASES, MAIN, Case
from .figures import LoadError
from .footprint import Footprint, measure_footprint
from .kernel import KERNELS, KernelRun, measure_kernel
from .kernel import ROUNDS as KERNEL_ROUNDS
from .native import BARE, LOADGEN, CompileError, build
from .observing import measure_observing
from .peers import AttachedPeer, Peer, all_peers, attached_peers
from .peers.ours import SLICES, SUBJECT, USERS
from .revision import RevisionError, export, trees
from .rounds import LIFE, Rounds, on_socket, say
from .server import ServerError, leave
from .summary import Samples

ROUNDS = 15
CLIENT_ROUNDS = 10
OBSERVING_ROUNDS = 3
QUICK_SECONDS = 90.0  # for rounds; with the starting of servers it is two minutes
QUICK_PEERS = (LIMIT, MEMORY, SUBJECT, USERS, SLICES)
DEFAULT_OUTPUT = Path("build/bench")
C = TypeVar("C", Peer, AttachedPeer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    parsed = _parser().parse_args(words)
    signal.signal(signal.SIGTERM, leave)
    unoptimized = [each.version for each in pythons.available() if not each.is_optimized]
    if refusal := refuse(parsed, unoptimized):
        sys.exit(f"bench: {refusal}")
    try:
        build(LOADGEN)
        processors = placement.choose(parsed.cpus)
        if parsed.against:
            export(parsed.against, pythons.available())
    except (CompileError, placement.PlacementError, RevisionError) as exc:
        sys.exit(f"bench: {exc}")
    run = _measure(parsed, processors, command_line(words), unoptimized)
    if not (run.samples.runs or run.clients.runs or run.kernel or run.observing):
        sys.exit("bench: nothing was measured; --help names the cases and the peers")
    print(report.page(run), end="", flush=True)
    _write(run, parsed.output)
    return 0


def refuse(parsed: Namespace, unoptimized: Sequence[str]) -> str | None:
    """Why these figures should not be published where ``--output`` says; None if they may."""
    if parsed.output == DEFAULT_OUTPUT or parsed.any_python or not unoptimized:
        return None
    return (
        f"Python {', '.join(unoptimized)} was built without PGO, and is a tenth slower than those"
        " that people use: run tools/setup bench, or say --any-python to publish all the same"
    )


def _measure(
    parsed: Namespace,
    processors: placement.Processors,
    command: str,
    unoptimized: Sequence[str],
) -> report.Run:
    samples, clients = Samples(), Samples()
    rounds = 0 if parsed.only_vm else _on_sockets(samples, parsed, processors)
    if _is_wanted(parsed, asking.NAME):
        _clients(clients, parsed, processors)
    return report.Run(
        command=command,
        rounds=rounds,
        life=LIFE,
        reference=pythons.REFERENCE,
        machine=machine.describe() | machine.describe_programs(),
        samples=samples,
        footprint=_footprint() if _is_wanted(parsed, "memory") else None,
        observing=measure_observing(OBSERVING_ROUNDS)
        if _is_wanted(parsed, observing.NAME)
        else None,
        kernel=_in_kernel(parsed) if parsed.only_vm or not (parsed.no_vm or parsed.quick) else None,
        clients=clients,
        revision=parsed.against,
        unoptimized=unoptimized,
    )


def _on_sockets(samples: Samples, parsed: Namespace, processors: placement.Processors) -> int:
    every = all_peers(*trees(parsed.against), parsed.options)
    peers = _present(choose_peers(every, parsed.peers, quick=parsed.quick))
    cases = choose_cases(parsed.cases, quick=parsed.quick)
    if not peers or not cases:
        return 0
    if processors.server == processors.client:
        say("there is one core only: what takes two is left out")
    rounds = Rounds(samples, peers, cases, on_socket, processors)
    return rounds.run(parsed.rounds, QUICK_SECONDS if parsed.quick else float("inf"))


def choose_peers(every: Sequence[Peer], wanted: Sequence[str], *, quick: bool) -> list[Peer]:
    """Those that are asked for; by default all, or in the quick form those that matter most.

    Another revision, and options, were asked for.
    """
    if wanted or not quick:
        return [peer for peer in every if matches(peer.name, wanted)]
    usual = {peer.name for peer in all_peers()} - set(QUICK_PEERS)
    return [peer for peer in every if peer.name not in usual]


def choose_cases(wanted: Sequence[str], *, quick: bool) -> list[Case]:
    """Those that are asked for; by default all, or in the quick form the main ones."""
    if wanted or not quick:
        return [case for case in CASES if matches(case.name, wanted)]
    return list(MAIN)


def _in_kernel(parsed: Namespace) -> KernelRun | None:
    cases = [case for case in KERNEL_CASES if matches(case.name, parsed.cases)]
    every = attached_peers(*trees(parsed.against))
    peers = _present([peer for peer in every if matches(peer.name, parsed.peers)])
    if not peers or not cases:
        return None
    return measure_kernel(
        peers,
        cases,
        kernel=parsed.kernel,
        rounds=min(parsed.rounds, KERNEL_ROUNDS),  # a round takes minutes there
        revision=parsed.against,
    )


def command_line(arguments: Sequence[str]) -> str:
    """Return the `make bench` that does the same."""
    return f"make bench BENCH={shlex.quote(shlex.join(arguments))}" if arguments else "make bench"


def matches(name: str, wanted: Sequence[str]) -> bool:
    """Whether a name contains one of the texts; whether or not, if there are none."""
    return not wanted or any(text.lower() in name.lower() for text in wanted)


def _is_wanted(parsed: Namespace, name: str) -> bool:
    """Whether to measure what is of aiovblk alone, and no case of servers."""
    if parsed.only_vm or parsed.peers or (parsed.quick and not parsed.cases):
        return False
    return matches(name, parsed.cases)


def _parser() -> ArgumentParser:
    names = [*(case.name for case in CASES), asking.NAME, "memory", observing.NAME]
    parser = ArgumentParser(
        prog="bench",
        description="aiovblk and its peers side by side, server and client pinned to processors.",
        epilog=f"Cases: {'; '.join(names)}. Peers: {'; '.join(each.name for each in all_peers())}.",
    )
    add = parser.add_argument
    add("--rounds", type=int, default=ROUNDS, metavar="N", help="default %(default)s")
    add("--peers", nargs="+", default=[], metavar="TEXT", help="those whose name contains a TEXT")
    add("--cases", nargs="+", default=[], metavar="TEXT", help="those whose name contains a TEXT")
    add("--quick", action="store_true", help="the main cases of a few peers, in two minutes")
    add("--options", default="", metavar="TEXT", help="aiovblk once more, served with these")
    add("--against", metavar="REV", help="aiovblk as git has it at REV, in turns with this one")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--no-vm", action="store_true", help="nothing in a virtual machine")
    where.add_argument("--only-vm", action="store_true", help="nothing elsewhere")
    add(
        "--kernel",
        choices=KERNELS,
        default=KERNELS[0],
        help="what the virtual machine boots; `host` needs none, but root and a kernel with nbd "
        "(default %(default)s)",
    )
    add(
        "--cpus",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="processors to use: the server's, the client's, others for what takes more",
    )
    add(
        "--any-python",
        action="store_true",
        help="publish although a Python was built without PGO",
    )
    add(
        "--output",
        type=Path,
        default=DEFAULT_OUTPUT,
        metavar="DIR",
        help="for the pages, JSON and picture (default %(default)s; docs publishes them)",
    )
    return parser


def _present(peers: list[C]) -> list[C]:
    """Those that this machine has; says of the others how to get them."""
    here = []
    for peer in peers:
        if peer.is_there():
            here.append(peer)
        else:
            say(f"{peer.name} is left out; it needs the package {peer.package}")
    if any(str(BARE) in _words(peer) for peer in here):
        build(BARE)
    return here


def _words(peer: Peer | AttachedPeer) -> Sequence[str]:
    if isinstance(peer, AttachedPeer):
        return peer.command
    return [word for command in peer.commands.values() for word in command]


def _footprint() -> Footprint | None:
    say("memory and import time")
    try:
        return measure_footprint()
    except (ServerError, LoadError, OSError) as exc:
        say(f"left out: {exc}")
        return None


def _clients(samples: Samples, parsed: Namespace, processors: placement.Processors) -> None:
    try:
        asking.measure_clients(samples, min(parsed.rounds, CLIENT_ROUNDS), processors)
    except (ServerError, LoadError, OSError) as exc:
        say(f"clients are left out: {exc}")


def _write(run: report.Run, directory: Path) -> None:
    report.write(run, directory)
    if run.has_picture and not picture.draw(run.samples, directory / report.PICTURE):
        say("no picture without matplotlib; .venv/bin/pip install -e '.[bench]' brings it")
    say(f"written to {directory}")


if __name__ == "__main__":
    sys.exit(main())
