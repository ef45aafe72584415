"""What is asked of the servers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from .placement import BOTH, Placement

SIZE = 256 << 20
"""Bytes of each server's disk."""

DELAY = 0.001
"""Seconds that the slow back end takes for a request."""


class Backend(Enum):
    """What a server has behind it."""

    MEMORY = "memory"
    SLOW = "slow"
    HEAVY = "heavy"


class Client(Enum):
    """Who asks: loadgen, with simple replies, or fio, whose libnbd negotiates structured ones."""

    LOADGEN = "loadgen"
    FIO = "fio"


@dataclass(frozen=True, slots=True)
class Case:
    """A load.

    Args:
        name: in tables, and what ``--cases`` looks for.
        op: ``read``, ``write`` or ``mixed``, which is half and half.
        length: bytes of each request.
        depth: requests in flight, of all connections together.
        requests: how many are measured, at most; a slow server is stopped earlier.
        connections: over which they are spread.
        backend: what the server has behind it.
        client: who asks.
        placements: where it is measured.
        is_sequential: whether offsets follow each other; otherwise they are random.
        size: bytes from the beginning of the disk that are used.
        longest: seconds after which it is stopped.
        every: it is measured in each round that is a multiple of this.
        is_for_all: whether every peer is asked; otherwise only those that matter most.

    """

    name: str
    op: str
    length: int
    depth: int
    requests: int
    connections: int = 1
    backend: Backend = Backend.MEMORY
    client: Client = Client.LOADGEN
    placements: tuple[Placement, ...] = BOTH
    is_sequential: bool = False
    size: int = SIZE
    longest: int = 1
    every: int = 1
    is_for_all: bool = True


READ = Case("4k read QD64", "read", 4096, 64, 6_000)
WRITE = Case("4k write QD64", "write", 4096, 64, 6_000)
READ_QD1 = Case("4k read QD1", "read", 4096, 1, 800)
BIG_READ = Case("256k read QD8", "read", 262_144, 8, 300)
BIG_WRITE = Case("256k write QD8", "write", 262_144, 8, 300)
SLOW = Case("1 ms back end QD128", "read", 4096, 128, 6_000, backend=Backend.SLOW)
MAIN = (READ, WRITE, READ_QD1, BIG_READ, BIG_WRITE, SLOW)
"""What the first tables are about, and all that ``--quick`` measures."""

BIG_DEEP = replace(BIG_READ, name="256k read QD32", depth=32)
"""So much in flight that malloc may give back what is freed: that is when copies cost most."""
WRITE_QD1 = replace(READ_QD1, name="4k write QD1", op="write", is_for_all=False)
MIXED = replace(READ, name="4k mixed QD64", op="mixed", is_for_all=False)
DEPTHS = tuple(
    replace(
        READ,
        name=f"4k read QD{depth}",
        depth=depth,
        requests=100 * depth + 1_000,
        is_for_all=False,
    )
    for depth in (4, 16, 128)
)
CONNECTIONS = tuple(
    replace(READ, name=f"4k read QD64, {count} connections", connections=count, is_for_all=False)
    for count in (2, 4)
)
# As long as it takes to unpack 16 KiB, what the client needs beside it is little.
HEAVY = Case(
    "16k read QD64, bz2, 2 connections",
    "read",
    16384,
    64,
    1_000,
    connections=2,
    backend=Backend.HEAVY,
    placements=(Placement.ANY_CORE,),
    every=3,
    is_for_all=False,
)
GROWTH = (BIG_DEEP, WRITE_QD1, MIXED, *DEPTHS, *CONNECTIONS, HEAVY)

FIO = tuple(
    replace(
        case,
        name=f"{case.name}, fio",
        client=Client.FIO,
        requests=10_000,
        every=3,
        is_for_all=False,
    )
    for case in (READ, WRITE, READ_QD1)
)
CASES = (*MAIN, *GROWTH, *FIO)

FILL = Case("fill", "write", 1 << 20, 8, SIZE >> 20, is_sequential=True, longest=30)
"""Writes all of the disk, so that no page fault is measured later."""

PART = 32 << 20
"""Bytes of each disk that are used in a test kernel, where filling all of it would take minutes."""


def _in_kernel(case: Case, *, depth: int, requests: int) -> Case:
    return replace(
        case,
        name=f"4k {case.op} QD{depth}",
        depth=depth,
        requests=requests,
        client=Client.FIO,
        placements=(Placement.KERNEL,),
        size=PART,
    )


KERNEL_READ_QD1 = _in_kernel(READ, depth=1, requests=5_000)
KERNEL_WRITE_QD1 = _in_kernel(WRITE, depth=1, requests=5_000)
KERNEL_READ = _in_kernel(READ, depth=32, requests=20_000)
KERNEL_WRITE = _in_kernel(WRITE, depth=32, requests=20_000)
KERNEL_CASES = (KERNEL_READ_QD1, KERNEL_WRITE_QD1, KERNEL_READ, KERNEL_WRITE)
KERNEL_FILL = replace(FILL, requests=PART >> 20, size=PART, client=Client.FIO)
