"""Where server and client run.

That decides more than the code of either. On one core what the server does is all that counts. On a
core each, waking the other one adds tens of microseconds to each request at depth 1, which hides
most of what a server costs, and its lead with it. A machine that is left alone does either, by
chance: figures that do not fix it cannot be compared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .process import PROC, tree

CPUS = Path("/sys/devices/system/cpu")


class Placement(Enum):
    """Where they run; the values are what tables say."""

    ONE_CORE = "one core"
    CORE_EACH = "a core each"
    ANY_CORE = "any core"
    KERNEL = "in the kernel"


BOTH = (Placement.ONE_CORE, Placement.CORE_EACH)


class PlacementError(Exception):
    """The machine has not the processors for it."""


@dataclass(frozen=True, slots=True)
class Processors:
    """Two processors of different cores, or one, and all that may be used."""

    server: int
    client: int
    every: frozenset[int]

    def cpus(self, placement: Placement) -> tuple[frozenset[int], frozenset[int]]:
        """Where a server and its client may run."""
        if placement is Placement.ONE_CORE:
            return frozenset({self.server}), frozenset({self.server})
        if placement is Placement.CORE_EACH:
            return frozenset({self.server}), frozenset({self.client})
        return self.every, self.every

    def allows(self, placement: Placement) -> bool:
        """Whether there are enough of them."""
        return placement is Placement.ONE_CORE or self.server != self.client

    def place(self, pid: int, placement: Placement) -> None:
        """Move a server with all its threads and children; and this process, for its next child.

        Raises:
            OSError: the server has ended.

        """
        server, client = self.cpus(placement)
        for process in tree(pid):
            pin_threads(process, server)
        os.sched_setaffinity(0, client)

    def release(self) -> None:
        """Let this process, and what it starts, run everywhere."""
        os.sched_setaffinity(0, self.every)


def pin_threads(pid: int, cpus: frozenset[int]) -> None:
    """Move all threads of a process; those that they start later are there too."""
    for task in (PROC / str(pid) / "task").iterdir():
        with suppress(ProcessLookupError):  # a thread that ends right now
            os.sched_setaffinity(int(task.name), cpus)


def choose(cpus: Sequence[int] = ()) -> Processors:
    """Choose the server's and the client's processor.

    Args:
        cpus: those that may be used, the server's first; by default all of this process's, of
            which the first two are taken that do not share a core.

    Raises:
        PlacementError: a processor is not there.

    """
    here = os.sched_getaffinity(0)
    if missing := set(cpus) - here:
        raise PlacementError(f"no processor {min(missing)} here, only {sorted(here)}")
    usable = list(cpus) or sorted(here)
    server = usable[0]
    siblings = parse_list(_read(CPUS / f"cpu{server}/topology/thread_siblings_list"))
    others = [each for each in usable[1:] if cpus or each not in siblings]
    return Processors(server, others[0] if others else server, frozenset(usable))


def parse_list(text: str) -> set[int]:
    """The kernel's form of a set of processors: ``0-3,8``."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
