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

from .codec import damaged_error, from_bytes, split, to_bytes, to_line

_NAMES = ("kind", "nonce", "holder", "size", "floor", "name", "time", "disk", "path", "torn")


class Kind(StrEnum):
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


@dataclass(frozen=True, slots=True)
class Record:
    """One step of a disk's history."""

    kind: Kind
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
    indices: array[int] = field(default_factory=lambda: array("Q"))
    """COMMIT: the chunks that have changed."""
    entries: array[int] = field(default_factory=lambda: array("Q"))
    """COMMIT: their new entries, in the same order."""

    def encode(self) -> bytes:
        """Encode the record's contents, to be sealed."""
        fields = {name: value for name in _NAMES if (value := getattr(self, name))}
        return b"".join((to_line(fields), to_bytes(self.indices), to_bytes(self.entries)))

    @classmethod
    def decode(cls, data: memoryview) -> Self:
        """Decode a record's contents, as :meth:`encode` has made them."""
        fields, rest = split(data)
        half = len(rest) // 2
        return cls(
            **{**fields, "kind": Kind(fields["kind"])},
            indices=from_bytes(rest[:half]),
            entries=from_bytes(rest[half:]),
        )


def read_record(contents: memoryview, path: str) -> Record:
    """Return the record in the contents of an object.

    Args:
        contents: of the object.
        path: of the object, for messages.

    Raises:
        StorageError: (EIO) it is no record.

    """
    try:
        return Record.decode(contents)
    except (ValueError, KeyError, TypeError) as exc:
        raise damaged_error(path, str(exc)) from None
