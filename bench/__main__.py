"""The command line: ``python -m bench``."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from . import machine, observing, picture, report
from .cases import CASES, KERNEL_CASES, QUICK
from .footprint import MANY, Footprint, available, measure_footprint
from .kernel import KERNELS, KernelRun, measure_kernel
from .kernel import ROUNDS as KERNEL_ROUNDS
from .load import LoadError
from .observing import Observing, measure_observing
from .peers import AttachedPeer, Peer, all_peers, attached_peers
from .peers.native import compile_native
from .rounds import measure_rounds, on_socket, say
from .server import ServerError, leave
from .summary import NOTHING, Samples

ROUNDS = 5
C = TypeVar("C", Peer, AttachedPeer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, leave)
    if parsed.cpus:
        os.sched_setaffinity(0, parsed.cpus)
    rounds = 1 if parsed.quick else parsed.rounds
    samples = Samples()
    if not parsed.only_vm:
        _on_sockets(samples, parsed, rounds)
    footprint = _footprint(parsed)
    kernel = None if parsed.no_vm else _in_kernel(parsed, rounds)
    observed = _observing(parsed, rounds)
    summary = samples.summary()
    if not summary.figures and kernel is None and observed is None:
        sys.exit("bench: nothing was measured; --help names the cases and the peers")
    run = report.Run(
        command=command_line(sys.argv[1:] if arguments is None else arguments),
        rounds=rounds,
        spread=samples.typical_spread(),
        processors=len(os.sched_getaffinity(0)),
        machine=machine.describe() | machine.describe_programs(),
        summary=summary,
        footprint=footprint,
        kernel=kernel,
        observing=observed,
    )
    print(report.page(run), end="", flush=True)
    _write(run, parsed.output)
    return 0


def _on_sockets(samples: Samples, parsed: Namespace, rounds: int) -> None:
    cases = [case for case in CASES if matches(case.name, parsed.cases)]
    if parsed.quick:
        cases = [case.quick() for case in cases]
    peers = _present([peer for peer in all_peers() if matches(peer.name, parsed.peers)])
    if peers and cases:
        measure_rounds(samples, peers, cases, rounds, start=on_socket)


def _in_kernel(parsed: Namespace, rounds: int) -> KernelRun | None:
    cases = [case for case in KERNEL_CASES if matches(case.name, parsed.cases)]
    peers = _present([peer for peer in attached_peers() if matches(peer.name, parsed.peers)])
    if not peers or not cases:
        return None
    return measure_kernel(
        peers,
        cases,
        kernel=parsed.kernel,
        rounds=min(rounds, KERNEL_ROUNDS),  # a round takes minutes there
        quick=parsed.quick,
    )


def command_line(arguments: Sequence[str]) -> str:
    """How `make bench` is told the same."""
    return f"make bench BENCH={shlex.quote(shlex.join(arguments))}" if arguments else "make bench"


def matches(name: str, wanted: Sequence[str]) -> bool:
    """Whether a name contains one of the texts; whether or not, if there are none."""
    return not wanted or any(text.lower() in name.lower() for text in wanted)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="bench",
        description="aiovblk and its peers side by side.",
        epilog=f"Cases: {'; '.join([*(case.name for case in CASES), observing.NAME])}. "
        f"Peers: {'; '.join(peer.name for peer in all_peers())}.",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument(
        "--peers", nargs="+", default=[], metavar="TEXT", help="those whose name contains a TEXT"
    )
    parser.add_argument(
        "--cases", nargs="+", default=[], metavar="TEXT", help="those whose name contains a TEXT"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round, a tenth of the requests: to see it work"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--no-vm", action="store_true", help="leave out what runs in a virtual machine"
    )
    where.add_argument("--only-vm", action="store_true", help="leave out everything else")
    parser.add_argument(
        "--kernel",
        choices=KERNELS,
        default=KERNELS[0],
        help="what the virtual machine boots; `host` needs none, but root and a kernel with nbd "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--cpus", nargs="+", type=int, metavar="N", help="use these processors only"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/bench"),
        metavar="DIR",
        help="for performance.md, .json and .svg (default %(default)s)",
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
    if any(peer.probe[0] == "cc" for peer in here):
        try:
            compile_native()
        except subprocess.CalledProcessError:
            say("bare.c is left out; it needs the packages gcc libc6-dev")
            here = [peer for peer in here if peer.probe[0] != "cc"]
    return here


def _footprint(parsed: Namespace) -> Footprint | None:
    """Of aiovblk; not when only others, or only some cases, are to be measured."""
    if parsed.only_vm or parsed.peers or parsed.cases or not available():
        return None
    say("memory and import time")
    try:
        return measure_footprint(requests=MANY // QUICK if parsed.quick else MANY)
    except (ServerError, LoadError, OSError) as exc:
        say(f"left out: {exc}")
        return None


def _observing(parsed: Namespace, rounds: int) -> Observing | None:
    """Of aiovblk; not when only others, or only other cases, are to be measured."""
    if parsed.only_vm or parsed.peers or not matches(observing.NAME, parsed.cases):
        return None
    say(observing.NAME)
    return measure_observing(rounds)


def _write(run: report.Run, directory: Path) -> None:
    report.write(run, directory)
    kernel = run.kernel.summary if run.kernel else NOTHING
    path = directory / "performance.svg"
    if run.has_picture and not picture.draw(run.summary, kernel, path):
        say("no picture without matplotlib; .venv/bin/pip install -e '.[bench]' brings it")
    say(f"written to {directory}")


if __name__ == "__main__":
    sys.exit(main())
