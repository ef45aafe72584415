"""Encode and decode the records of the journal: the steps of a disk's history.

Fencing: records are created by conditional puts ("only if it does not exist"), so that of two
writers one succeeds. The order of the records is the truth, and a writer that finds another
writer's OPEN record where its own next one should be has been fenced.

A record may be torn after a power failure: it has its name, and no contents. No flush had returned
for it, so it does not count. It is not deleted, since of two processes that see it the later might
delete what the earlier has put there; the next record goes behind it, and says so
(:attr:`Record.torn`).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from .client import Buffer
from .codec import damaged_error, from_bytes, split, to_bytes, to_line
from .extents import PackedRuns, Placed, pack, unpack

_NAMES = (
    *("kind", "nonce", "holder", "size", "floor", "name", "time", "disk", "path", "torn"),
    "moved",
)


class RecordKind(StrEnum):
    """The kinds of records."""

    OPEN = "open"
    """A writer begins; every earlier one is fenced."""
    COMMIT = "commit"
    """The writer flushes: it makes new chunks part of the disk."""
    CLOSE = "close"
    """The writer ends."""
    SNAPSHOT = "snapshot"
    """The state after this record gets a name."""
    DROP = "drop"
    """A snapshot is dropped."""
    CLONE = "clone"
    """Another disk shares the chunks of a snapshot."""
    RELEASE = "release"
    """A clone was deleted."""
    CONVERT = "convert"
    """The disk has format 3 or 4 from here on; earlier versions do not read past this."""


@dataclass(frozen=True, slots=True)
class Record:
    """One step of a disk's history."""

    kind: RecordKind
    nonce: str
    """Random; tells our own record of an earlier attempt from another process's."""
    holder: str = ""
    """OPEN: the process that writes, for messages."""
    size: int = 0
    """COMMIT: bytes of the disk."""
    floor: int = 0
    """COMMIT: lower versions that are not in the map will never be in it."""
    name: str = ""
    """SNAPSHOT, DROP, CLONE: the snapshot's name."""
    time: float = 0
    """SNAPSHOT, CLONE: seconds since the epoch."""
    disk: str = ""
    """CLONE, RELEASE: the identity of the other disk."""
    path: str = ""
    """CLONE: its folder, seen from the store's root."""
    torn: int = 0
    """The first of the records right before this one that are torn and do not count, if any are. A
    torn record that no later one declares torn here is damage: flushed data is lost."""
    moved: bool = False
    """COMMIT: what it changes was only moved, so the disk's contents are the same as before."""
    sources: list[tuple[int, int]] = field(default_factory=list)
    """COMMIT: the segments that its runs are in: entry, and blocks."""
    indices: array[int] = field(default_factory=lambda: array("Q"))
    """COMMIT: the chunks that have a new entry, and no other runs than this record's."""
    entries: array[int] = field(default_factory=lambda: array("Q"))
    """COMMIT: their new entries, in the same order."""
    runs: list[Placed] = field(default_factory=list)
    """COMMIT: laid over what is there. Those that are inline have their data in :attr:`data`."""
    data: Buffer = b""
    """COMMIT: blocks."""

    def encode(self) -> bytes:
        """Encode the record's contents, to be sealed."""
        packed = pack(self.runs, dict(self.sources))
        fields = {name: value for name in _NAMES if (value := getattr(self, name))}
        if self.runs:
            fields |= {"chunks": len(self.indices), "runs": len(self.runs)}
            fields["sources"] = packed.sources
        arrays = (self.indices, self.entries, packed.words)
        return b"".join((to_line(fields), *map(to_bytes, arrays), self.data))

    @classmethod
    def decode(cls, data: memoryview, block_size: int) -> Self:
        """Decode a record's contents, as :meth:`encode` has made them."""
        fields, rest = split(data)
        chunks = 8 * fields.pop("chunks", len(rest) // 16)
        runs = 16 * fields.pop("runs", 0)
        indices, entries, words, blocks = _cut(rest, chunks, chunks, runs)
        fields["kind"] = RecordKind(fields["kind"])
        fields["sources"] = [(source, count) for source, count in fields.pop("sources", ())]
        packed = PackedRuns(from_bytes(words), fields["sources"])
        return cls(
            **fields,
            indices=from_bytes(indices),
            entries=from_bytes(entries),
            runs=unpack(packed, blocks, block_size),
            data=blocks,
        )


def _cut(data: memoryview, *lengths: int) -> list[memoryview]:
    """Return parts of these lengths, and the rest."""
    parts = []
    for length in lengths:
        if not 0 <= length <= len(data):
            raise ValueError("it is cut off")
        parts.append(data[:length])
        data = data[length:]
    return [*parts, data]


def read_record(contents: memoryview, path: str, block_size: int) -> Record:
    """Return the record in the contents of an object.

    Args:
        contents: of the object.
        path: of the object, for messages.
        block_size: bytes.

    Raises:
        StorageError: (EIO) it is no record.

    """
    try:
        return Record.decode(contents, block_size)
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        raise damaged_error(path, str(exc)) from None
