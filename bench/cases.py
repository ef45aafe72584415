"""What is asked of the servers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

SIZE = 256 << 20
"""Bytes of each server's disk."""

DELAY = 0.001
"""Seconds that the slow back end takes for a request."""


QUICK = 10
"""How many times fewer requests ``--quick`` makes."""


class Backend(Enum):
    """What a server has behind it."""

    MEMORY = "memory"
    SLOW = "slow"
    HEAVY = "heavy"


@dataclass(frozen=True, slots=True)
class Case:
    """A load.

    Args:
        name: in tables, and what ``--cases`` looks for.
        pattern: fio's name for the order and direction (``--rw``).
        length: bytes of each request.
        depth: requests in flight, of all connections together.
        requests: how many there are, at most; a slow server is stopped earlier.
        connections: over which they are spread.
        backend: what the server has behind it.
        size: bytes from the beginning of the disk that are used.
        longest: seconds after which it is stopped.

    """

    name: str
    pattern: str
    length: int
    depth: int
    requests: int
    connections: int = 1
    backend: Backend = Backend.MEMORY
    size: int = SIZE
    longest: int = 1

    def quick(self) -> Case:
        """The same with fewer requests."""
        return replace(self, requests=self.requests // QUICK)


READ_QD1 = Case("4k read QD1", "randread", 4096, 1, 5_000)
WRITE_QD1 = Case("4k write QD1", "randwrite", 4096, 1, 5_000)
READ = Case("4k read QD64", "randread", 4096, 64, 20_000)
WRITE = Case("4k write QD64", "randwrite", 4096, 64, 20_000)
MIXED = Case("4k mixed QD64", "randrw", 4096, 64, 20_000)
BIG_READ = Case("256k read QD8", "read", 262_144, 8, 6_000)
BIG_WRITE = Case("256k write QD8", "write", 262_144, 8, 6_000)
SLOW = Case("1 ms back end QD128", "randread", 4096, 128, 20_000, backend=Backend.SLOW)
TWO = Case("4k read QD64, 2 connections", "randread", 4096, 64, 20_000, connections=2)
# As long as it takes to unpack 16 KiB, what fio needs beside it is little.
HEAVY = Case(
    "16k read QD64, bz2, 2 connections",
    "randread",
    16384,
    64,
    20_000,
    connections=2,
    backend=Backend.HEAVY,
)
FOUR = Case("4k read QD64, 4 connections", "randread", 4096, 64, 20_000, connections=4)

CASES = (*(READ_QD1, WRITE_QD1, READ, WRITE, MIXED, BIG_READ, BIG_WRITE, SLOW, TWO, FOUR, HEAVY),)

FILL = Case("fill", "write", 1 << 20, 8, SIZE >> 20, longest=30)
"""Writes all of the disk, so that no page fault is measured later."""

PART = 32 << 20
"""Bytes of each disk that are used in a test kernel, where filling all of it would take minutes."""

KERNEL_READ_QD1 = Case("4k read QD1", "randread", 4096, 1, 5_000, size=PART)
KERNEL_WRITE_QD1 = Case("4k write QD1", "randwrite", 4096, 1, 5_000, size=PART)
KERNEL_READ = Case("4k read QD32", "randread", 4096, 32, 20_000, size=PART)
KERNEL_WRITE = Case("4k write QD32", "randwrite", 4096, 32, 20_000, size=PART)

KERNEL_CASES = (KERNEL_READ_QD1, KERNEL_WRITE_QD1, KERNEL_READ, KERNEL_WRITE)

KERNEL_FILL = replace(FILL, requests=PART >> 20, size=PART)
