"""What runs inside a test kernel: ``python -m bench.guest``, started by kernel.py.

All peers are attached at once, each to a device of its own, and have their turns as on sockets.
What was measured is printed at once, each figure on a line of its own: whatever happens to the
machine later, it is not lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from statistics import median

from . import kernel, machine
from .attach import Mount, attached
from .cases import KERNEL_CASES, KERNEL_FILL, Backend
from .figures import Figures
from .load import Server
from .peers import AttachedPeer, attached_peers
from .peers.ours import SUBJECT, python_command
from .pythons import REFERENCE, ROOT
from .revision import trees
from .rounds import Rounds, say
from .server import leave
from .summary import Key, Samples

PATIENCE = 120.0  # seconds for all mounts of an interpreter


class PrintedSamples(Samples):
    """Samples that are printed as they come."""

    def add(self, key: Key, figures: Figures) -> None:
        """Print one run."""
        tell(case=key.case, peer=key.peer, figures=asdict(figures))


def main() -> None:
    """Measure those peers and cases that are named."""
    parser = ArgumentParser(prog="bench.guest")
    parser.add_argument("--peers", nargs="+", default=[])
    parser.add_argument("--cases", nargs="+", default=[])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--against")
    parsed = parser.parse_args()
    signal.signal(signal.SIGTERM, leave)
    subprocess.run(["modprobe", "nbd"], check=False)  # or it is in the kernel
    tell(machine=machine.describe())
    every = attached_peers(*trees(parsed.against))
    peers = [peer for peer in every if peer.name in parsed.peers]
    cases = [case for case in KERNEL_CASES if case.name in parsed.cases]
    if SUBJECT in parsed.peers:
        _tell_of_mounts(SUBJECT)
    Rounds(PrintedSamples(), peers, cases, _start, fill=KERNEL_FILL).run(parsed.rounds)


def tell(**fields: object) -> None:
    """Print a line that kernel.py knows from those of others."""
    print(f"{kernel.MARK}{json.dumps(fields)}", flush=True)


@contextmanager
def _start(peer: AttachedPeer, backend: Backend) -> Iterator[Server]:
    with attached(peer) as (server, mount):
        tell(peer=peer.name, mount=asdict(mount))
        yield server


def _tell_of_mounts(peer: str) -> None:
    try:
        done = subprocess.run(
            [*python_command(REFERENCE), "-m", "bench.mounting"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as exc:
        say(f"the time of a mount is left out: {exc}")
    else:
        tell(peer=peer, mount=asdict(Mount(None, median(json.loads(done.stdout)))))


if __name__ == "__main__":
    main()
