"""How the objects of a disk are called, and what its chunks are known by.

A disk is a folder of an object store::

    disk.json                       what never changes (description.py)
    log/<number>                    one step of its history each, from 1 on (records.py)
    map/<number>                    the sum of all records up to that number (state.py)
    chunks/<index>-<version>        the bytes of one chunk, written once and never changed
    lease                           who writes, and that it lives (lease.py)

All but ``disk.json`` and ``lease`` are sealed.

A chunk is known by its entry, a number of 64 bits: 0 for zeroes, else from the top 12 bits of
origin (0 the disk itself, others an ancestor in its description), 20 of the writer's epoch, 32 of a
counter within it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .client import ObjectInfo

MANIFEST = "disk.json"
LEASE = "lease"
LOG, MAP, CHUNKS = "log", "map", "chunks"

MAX_CHUNKS = 1 << 24
"""Of one disk; the map has 8 bytes for each in memory, and less where it is stored."""

_VERSION_BITS = 52
_COUNTER_BITS = 32
MAX_EPOCHS = 1 << (_VERSION_BITS - _COUNTER_BITS)
MAX_ORIGINS = 1 << (64 - _VERSION_BITS)
ORIGIN_STEP = 1 << _VERSION_BITS
"""From an entry to that of the same chunk in a clone."""

_NUMBERED = re.compile(rf"(?:{LOG}|{MAP})/([0-9a-f]{{12}})")
_CHUNK = re.compile(rf"{CHUNKS}/([0-9a-f]{{8}})-([0-9a-f]{{13}})")


def record_key(sequence: int) -> str:
    """The name of a record."""
    return f"{LOG}/{sequence:012x}"


def checkpoint_key(sequence: int) -> str:
    """The name of a state."""
    return f"{MAP}/{sequence:012x}"


def sequence_of(path: str) -> int | None:
    """The number of a record or state; None for what somebody else has put there."""
    name = _NUMBERED.fullmatch(path)
    return int(name[1], 16) if name else None


def sequences_of(found: Iterable[ObjectInfo]) -> list[int]:
    """The numbers of records or states that a list has."""
    return [number for each in found if (number := sequence_of(each.path)) is not None]


def chunk_key(index: int, version: int) -> str:
    """The name of a chunk."""
    return f"{CHUNKS}/{index:08x}-{version:013x}"


def chunk_of(path: str) -> tuple[int, int] | None:
    """The index and the version of a chunk; None for what somebody else has put there."""
    name = _CHUNK.fullmatch(path)
    return (int(name[1], 16), int(name[2], 16)) if name else None


def is_key(path: str) -> bool:
    """Whether it is the name of a record, a state or a chunk."""
    return sequence_of(path) is not None or chunk_of(path) is not None


def entry_parts(entry: int) -> tuple[int, int]:
    """The origin and the version of an entry."""
    return entry >> _VERSION_BITS, entry & ((1 << _VERSION_BITS) - 1)


def first_version(epoch: int) -> int:
    """The version before the first that a writer of this epoch makes."""
    return epoch << _COUNTER_BITS
