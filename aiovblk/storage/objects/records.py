"""The steps of a disk's history.

Records are made by conditional puts ("if there is none"), so that of two writers one succeeds: the
order of the records is the truth, and whoever finds another writer's ``open`` where its own next
record should be has been fenced.

A record may be torn after a power failure: it has its name, and no contents. Nobody was told that
it is durable, so it does not count. It is not deleted, since of two who see it the later might
delete what the earlier has put there; the next record goes behind it, and says so.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from .codec import damaged_error, from_bytes, split, to_bytes, to_line

_NAMES = ("kind", "nonce", "holder", "size", "floor", "name", "time", "disk", "path", "torn")


class Kind(StrEnum):
    """Of a record."""

    OPEN = "open"
    """A writer begins; every other one is fenced."""
    COMMIT = "commit"
    """The writer has new chunks."""
    CLOSE = "close"
    """The writer is done."""
    SNAPSHOT = "snapshot"
    """The state is given a name."""
    DROP = "drop"
    """A snapshot is given up."""
    CLONE = "clone"
    """Another disk shares the chunks of a snapshot."""
    RELEASE = "release"
    """That disk is no more."""


@dataclass(frozen=True, slots=True)
class Record:
    """One step of the history."""

    kind: Kind
    nonce: str
    """Random; tells a record that was made by an earlier attempt from another's."""
    holder: str = ""
    """OPEN: who writes, in words."""
    size: int = 0
    """COMMIT: bytes of the disk."""
    floor: int = 0
    """COMMIT: versions below that are not in the map will never be."""
    name: str = ""
    """SNAPSHOT, DROP, CLONE: of the snapshot."""
    time: float = 0
    """SNAPSHOT, CLONE: seconds since the epoch."""
    disk: str = ""
    """CLONE, RELEASE: the identity of the other disk."""
    path: str = ""
    """CLONE: its folder, seen from the store's root."""
    torn: int = 0
    """The first of the records right before this one that are torn and do not count, if any are.
    Whoever finds a torn one that no later one calls so has lost something that was flushed."""
    indices: array[int] = field(default_factory=lambda: array("Q"))
    """COMMIT: the chunks that have changed."""
    entries: array[int] = field(default_factory=lambda: array("Q"))
    """COMMIT: and what they are now."""

    def encode(self) -> bytes:
        """Return what is sealed."""
        fields = {name: value for name in _NAMES if (value := getattr(self, name))}
        return b"".join((to_line(fields), to_bytes(self.indices), to_bytes(self.entries)))

    @classmethod
    def decode(cls, data: memoryview) -> Self:
        """Return what was sealed."""
        fields, rest = split(data)
        half = len(rest) // 2
        return cls(
            **{**fields, "kind": Kind(fields["kind"])},
            indices=from_bytes(rest[:half]),
            entries=from_bytes(rest[half:]),
        )


def read_record(contents: memoryview, path: str) -> Record:
    """Return the record in an object that was opened.

    Raises:
        StorageError: there is none.

    """
    try:
        return Record.decode(contents)
    except (ValueError, KeyError, TypeError) as exc:
        raise damaged_error(path, str(exc)) from None
