"""Name the objects of a disk (its keys), and number the versions of its chunks.

A disk is a folder of an object store::

    disk.json                       the manifest: what never changes (manifest.py)
    log/<number>                    a record of its history, the journal; from 1 on (records.py)
    map/<number>                    a checkpoint: the state after that record (state.py)
    chunks/<index>-<version>        the bytes of one chunk, written once and never changed
    segments/<version>              blocks of many chunks, written once and never changed
    lease                           who writes, and until when (lease.py)
    backups/<name>                  only of a disk that holds backups (storage/backup/)

All but ``disk.json`` and ``lease`` are encoded by :class:`.ObjectCodec`.

An *entry* says where a chunk's bytes are, in 64 bits: 0 for zeroes; otherwise, from the top, 12
bits of origin (0 the disk itself, others an ancestor in its manifest), 20 of the writer's epoch, 32
of a counter within it, the first of which says that the object has frames (:mod:`.frames`). Epoch
and counter are the *version* in the chunk's key. Segments have entries and versions like chunks,
from the same counter. The format is described in docs/reference/object-store-format.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .client import ObjectInfo

MANIFEST = "disk.json"
LEASE = "lease"
LOG, MAP, CHUNKS, SEGMENTS = "log", "map", "chunks", "segments"
FOLDERS = (LOG, MAP, SEGMENTS, CHUNKS)
"""All folders of a disk; those that are short to list first."""

BACKUPS = "backups"
"""The folder that a disk has beside these if it holds backups (:mod:`aiovblk.storage.backup`)."""

MAX_CHUNKS = 1 << 24
"""Of one disk; the map has 8 bytes for each in memory, and less where it is stored."""

_VERSION_BITS = 52
_COUNTER_BITS = 32
_FRAMED = 1 << (_COUNTER_BITS - 1)
MAX_EPOCHS = 1 << (_VERSION_BITS - _COUNTER_BITS)
MAX_ORIGINS = 1 << (64 - _VERSION_BITS)
ORIGIN_STEP = 1 << _VERSION_BITS
"""To be added to an entry for that of the same chunk in a clone."""

_NUMBERED = re.compile(rf"(?:{LOG}|{MAP})/([0-9a-f]{{12}})")
_CHUNK = re.compile(rf"{CHUNKS}/([0-9a-f]{{8}})-([0-9a-f]{{13}})")
_SEGMENT = re.compile(rf"{SEGMENTS}/([0-9a-f]{{13}})")
_BACKUP = re.compile(rf"{BACKUPS}/(?:[0-9]{{8}}T[0-9]{{6}}Z(?:-[0-9]+)?|unfinished)")


def record_key(sequence: int) -> str:
    """Return the key of a record."""
    return f"{LOG}/{sequence:012x}"


def checkpoint_key(sequence: int) -> str:
    """Return the key of a checkpoint."""
    return f"{MAP}/{sequence:012x}"


def sequence_of(path: str) -> int | None:
    """Return the number in the key of a record or checkpoint; None for any other key."""
    match = _NUMBERED.fullmatch(path)
    return int(match[1], 16) if match else None


def sequences_of(listed: Iterable[ObjectInfo]) -> list[int]:
    """Return the numbers of the records or checkpoints in a list."""
    return [number for each in listed if (number := sequence_of(each.path)) is not None]


def chunk_key(index: int, version: int) -> str:
    """Return the key of a chunk."""
    return f"{CHUNKS}/{index:08x}-{version:013x}"


def chunk_of(path: str) -> tuple[int, int] | None:
    """Return the index and version in the key of a chunk; None for any other key."""
    match = _CHUNK.fullmatch(path)
    return (int(match[1], 16), int(match[2], 16)) if match else None


def segment_key(version: int) -> str:
    """Return the key of a segment."""
    return f"{SEGMENTS}/{version:013x}"


def version_of(path: str) -> int | None:
    """Return the version in the key of a chunk or segment; None for any other key."""
    match = _SEGMENT.fullmatch(path)
    if match:
        return int(match[1], 16)
    chunk = chunk_of(path)
    return chunk[1] if chunk else None


def backup_key(name: str) -> str:
    """Return the key of what a backup says of itself; see :mod:`aiovblk.storage.backup`."""
    return f"{BACKUPS}/{name}"


def is_key(path: str) -> bool:
    """Whether it is the key of a record, a checkpoint, a chunk, a segment or a backup."""
    is_numbered = sequence_of(path) is not None or version_of(path) is not None
    return is_numbered or _BACKUP.fullmatch(path) is not None


def entry_parts(entry: int) -> tuple[int, int]:
    """Return the origin and the version of an entry."""
    return entry >> _VERSION_BITS, entry & ((1 << _VERSION_BITS) - 1)


def has_frames(entry: int) -> bool:
    """Whether the object of an entry consists of frames, so that parts of it can be read."""
    return bool(entry & _FRAMED)


def first_version(epoch: int) -> int:
    """Return the version before all those of a writer of this epoch."""
    return epoch << _COUNTER_BITS


def first_framed_version(epoch: int) -> int:
    """Return the version before the first one that a writer of this epoch gives to an object."""
    return first_version(epoch) | _FRAMED
