"""The part that needs a kernel with NBD: each server behind a /dev/nbdN, in a virtual machine.

This is the side of the host: it has ``tools/vm`` boot a test kernel that runs guest.py, and reads
what that tells.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from .attach import Mount
from .cases import Case
from .figures import Figures
from .machine import Others
from .peers import AttachedPeer
from .placement import Placement
from .pythons import ROOT
from .rounds import say
from .server import stop
from .summary import Key, Samples

KERNELS = ("6.1", "6.12", "host")
ROUNDS = 5
PROCESSORS = 2
MEMORY = 3072  # MiB: of each peer's disk the part that is used, and the programs
BOOT = 120  # seconds, with the download of a kernel
LONGEST_ROUND = 400  # seconds until the machine counts as hung
MARK = "bench-data: "  # begins the lines that are not for people


@dataclass(frozen=True, slots=True)
class KernelRun:
    """What was measured in a test kernel.

    Args:
        machine: its kernel and processors.
        rounds: how many there were.
        others: how many of the host's processors other programs had meanwhile.
        samples: the figures.
        mounts: how long attaching took.

    """

    machine: Mapping[str, str]
    rounds: int
    others: float
    samples: Samples
    mounts: Mapping[str, Mount]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "machine": dict(self.machine),
            "rounds": self.rounds,
            "others": self.others,
            "runs": self.samples.as_json()["runs"],
            "mount_seconds": {peer: asdict(mount) for peer, mount in self.mounts.items()},
        }


@dataclass
class Collected:
    """What a guest has printed so far."""

    machine: dict[str, str] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    mounts: dict[str, list[Mapping[str, float | None]]] = field(default_factory=dict)

    def take(self, text: str) -> None:
        """Take in one line, without its mark."""
        data = json.loads(text)
        if "machine" in data:
            self.machine = data["machine"]
        elif "mount" in data:
            self.mounts.setdefault(data["peer"], []).append(data["mount"])
        else:
            key = Key(data["case"], Placement.KERNEL, data["peer"])
            self.samples.add(key, Figures(**data["figures"]))

    def run(self, rounds: int, others: float) -> KernelRun | None:
        """Put it together; None if nothing was measured."""
        if not self.samples.runs:
            return None
        return KernelRun(
            machine=self.machine,
            rounds=rounds,
            others=others,
            samples=self.samples,
            # In the order of the other tables.
            mounts={peer: _median(self.mounts[peer]) for peer in self.samples.peers()},
        )


def measure_kernel(
    peers: Sequence[AttachedPeer],
    cases: Sequence[Case],
    *,
    kernel: str,
    rounds: int,
    revision: str | None = None,
) -> KernelRun | None:
    """Boot a kernel and measure in it; None, and a line that says why, where that cannot be.

    Args:
        peers: who takes part.
        cases: what they are asked.
        kernel: which of :data:`KERNELS`.
        rounds: how often.
        revision: the one of which :func:`bench.revision.export` has made a copy, if any.

    """
    say(f"in the hands of kernel {kernel}")
    collected, others = Collected(), Others()
    command = [*machine_command(kernel, rounds), *guest_command(peers, cases, rounds, revision)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        reason = _read(process, collected)
        status = process.wait()
    finally:
        stop(process)
    run = collected.run(rounds, others.processors())
    if status:
        reason = reason or f"exit status {status}"
        say(f"the test kernel {'failed later' if run else 'is left out'}: {reason}")
    return run


def machine_command(kernel: str, rounds: int) -> list[str]:
    """What comes before a command that shall run on a test kernel."""
    return [
        *(sys.executable, "tools/vm", "run", "--kernel", kernel),
        *("--smp", str(PROCESSORS), "--memory", str(MEMORY)),
        *("--timeout", str(BOOT + rounds * LONGEST_ROUND), "--"),
    ]


def guest_command(
    peers: Sequence[AttachedPeer], cases: Sequence[Case], rounds: int, revision: str | None = None
) -> list[str]:
    """What runs there."""
    return [
        *(sys.executable, "-m", "bench.guest", "--rounds", str(rounds)),
        *("--peers", *(peer.name for peer in peers)),
        *("--cases", *(case.name for case in cases)),
        *(["--against", revision] if revision else []),
    ]


def _read(process: subprocess.Popen[str], collected: Collected) -> str | None:
    """Read the guest's figures, and pass on the rest; returns what tools/vm itself said last."""
    reason = None
    for line in _lines(process):
        if line.startswith(MARK):
            collected.take(line.removeprefix(MARK))
        elif line.startswith("vm: "):
            reason = line.removeprefix("vm: ").strip()
        else:
            print(line, end="", file=sys.stderr, flush=True)
    return reason


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None  # because it is a pipe
    return iter(process.stdout)


def _median(mounts: Sequence[Mapping[str, float | None]]) -> Mount:
    def middle(name: str) -> float | None:
        seconds = [each for mount in mounts if (each := mount[name]) is not None]
        return median(seconds) if seconds else None

    return Mount(middle("whole"), middle("alone"))
