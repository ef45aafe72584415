"""The command line: ``python -m bench``."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from . import machine, picture, report
from .cases import CASES
from .footprint import MANY, Footprint, available, measure_footprint
from .load import LoadError
from .peers import Peer, all_peers
from .peers.native import compile_native
from .rounds import measure_rounds, say
from .server import ServerError

ROUNDS = 5
QUICK = 10  # how many times fewer requests


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, leave)
    cases = [case for case in CASES if matches(case.name, parsed.cases)]
    if parsed.quick:
        cases = [replace(case, requests=case.requests // QUICK) for case in cases]
    if parsed.cpus:
        os.sched_setaffinity(0, parsed.cpus)
    peers = _present([peer for peer in all_peers() if matches(peer.name, parsed.peers)])
    if not peers or not cases:
        sys.exit("bench: nothing to measure; --help names the cases and the peers")
    rounds = 1 if parsed.quick else parsed.rounds
    samples = measure_rounds(peers, cases, rounds)
    run = report.Run(
        command=command_line(sys.argv[1:] if arguments is None else arguments),
        rounds=rounds,
        spread=samples.typical_spread(),
        processors=len(os.sched_getaffinity(0)),
        machine=machine.describe(),
        summary=samples.summary(),
        footprint=_footprint(parsed),
    )
    print(report.page(run), end="", flush=True)
    _write(run, parsed.output)
    return 0


def leave(number: int, frame: FrameType | None) -> None:
    """Leave by way of the cleanups: no server may outlive the benchmark."""
    sys.exit(128 + number)


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
        epilog=f"Cases: {'; '.join(case.name for case in CASES)}. "
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


def _present(peers: list[Peer]) -> list[Peer]:
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
    if parsed.peers or parsed.cases or not available():
        return None
    say("memory and import time")
    try:
        return measure_footprint(requests=MANY // QUICK if parsed.quick else MANY)
    except (ServerError, LoadError, OSError) as exc:
        say(f"left out: {exc}")
        return None


def _write(run: report.Run, directory: Path) -> None:
    report.write(run, directory)
    if not picture.draw(run.summary, directory / "performance.svg"):
        say("no picture without matplotlib; .venv/bin/pip install -e '.[bench]' brings it")
    say(f"written to {directory}")


if __name__ == "__main__":
    sys.exit(main())
