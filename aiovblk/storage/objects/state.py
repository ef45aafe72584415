"""What a disk is at a moment: the sum of its records."""

from __future__ import annotations

import zlib
from array import array
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from .codec import damaged_error, from_bytes, split, to_bytes, to_line
from .keys import MAX_CHUNKS, first_version
from .records import Kind, Record


@dataclass(frozen=True, slots=True)
class Clone:
    """A disk that shares the chunks of a snapshot."""

    path: str
    """Its folder, seen from the store's root."""
    time: float
    """When it was made, as for a snapshot."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state with a name."""

    sequence: int
    """Of the state."""
    size: int
    """Bytes of the disk then."""
    time: float
    """When, in seconds since the epoch by the clock of who made it."""
    clones: dict[str, Clone] = field(default_factory=dict)
    """The disks, by identity, that share its chunks."""


@dataclass(slots=True)
class DiskState:
    """The sum of the records."""

    size: int
    chunks: array[int]
    """The entry of each chunk."""
    sequence: int = 0
    """Of the last record."""
    contents: str = ""
    """The nonce of the last COMMIT, which tells what the disk holds from what it held before."""
    epoch: int = 0
    """How often a writer has opened the disk."""
    holder: str = ""
    """The last of them, in words."""
    unclosed: int = 0
    """The last record of that writer, if it has not closed the disk."""
    floor: int = 0
    """Versions below that are not in the map will never be."""
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    fences: list[tuple[int, int]] = field(default_factory=list)
    """First and last of the records that must stay: a writer that was never closed, and may believe
    to this day that it is the writer, finds them where its own would be. The first is its own last
    one, whose answer may have been lost."""

    @property
    def newest_snapshot(self) -> int:
        """The record of the snapshot that was taken last, of those that there are."""
        return max((each.sequence for each in self.snapshots.values()), default=0)

    def apply(self, record: Record, chunk_size: int) -> None:
        """Take the next step."""
        self.sequence += 1
        match record.kind:
            case Kind.OPEN:
                if self.unclosed:
                    self.fences.append((self.unclosed, self.sequence))
                self.epoch += 1
                self.holder = record.holder
                self.unclosed = self.sequence
                self.floor = first_version(self.epoch)
            case Kind.COMMIT:
                self._commit(record, chunk_size)
            case Kind.CLOSE:
                self.unclosed = 0
            case Kind.SNAPSHOT:
                self.snapshots[record.name] = Snapshot(self.sequence, self.size, record.time)
            case Kind.DROP:
                self.snapshots.pop(record.name, None)
            case Kind.CLONE:
                clone = Clone(record.path, record.time)
                self.snapshots[record.name].clones[record.disk] = clone
            case Kind.RELEASE:
                for snapshot in self.snapshots.values():
                    snapshot.clones.pop(record.disk, None)

    def _commit(self, record: Record, chunk_size: int) -> None:
        self.unclosed = self.sequence
        self.contents = record.nonce
        self.floor = record.floor
        self.size = record.size
        resize(self.chunks, -(-record.size // chunk_size))
        for index, entry in zip(record.indices, record.entries, strict=True):
            if index < len(self.chunks):  # one that was cut off since
                self.chunks[index] = entry

    def reflects(self, record: Record, sequence: int) -> bool:
        """Whether what a record of this number was to bring about is so, but for COMMIT and CLOSE.

        Who added it did not know whether there was another, summed up and deleted since, before.
        """
        clones = (each.clones for each in self.snapshots.values())
        snapshot = self.snapshots.get(record.name)
        match record.kind:
            case Kind.OPEN:  # as long as the state says so, that record is not deleted
                return self.unclosed == sequence
            case Kind.SNAPSHOT:
                taken = (sequence, record.time)
                return snapshot is not None and (snapshot.sequence, snapshot.time) == taken
            case Kind.DROP:  # there may be a new one of that name
                return snapshot is None or snapshot.sequence > sequence
            case Kind.CLONE:
                return any(record.disk in each for each in clones)
            case Kind.RELEASE:
                return not any(record.disk in each for each in clones)
        return False

    def copy(self) -> DiskState:
        """Return one that does not change with this."""
        return replace(
            self,
            chunks=self.chunks[:],
            snapshots={
                name: replace(each, clones=dict(each.clones))
                for name, each in self.snapshots.items()
            },
            fences=list(self.fences),
        )

    def encode(self) -> bytes:
        """Return what is sealed. It takes milliseconds for each MiB of the map."""
        fields = {
            "size": self.size,
            "sequence": self.sequence,
            "contents": self.contents,
            "epoch": self.epoch,
            "holder": self.holder,
            "unclosed": self.unclosed,
            "floor": self.floor,
            "snapshots": {name: asdict(each) for name, each in self.snapshots.items()},
            "fences": self.fences,
        }
        return to_line(fields) + zlib.compress(to_bytes(self.chunks), 1)

    @classmethod
    def decode(cls, data: memoryview) -> Self:
        """Return what was sealed."""
        fields, rest = split(data)
        fields["snapshots"] = {
            name: _snapshot(**each) for name, each in fields["snapshots"].items()
        }
        fields["fences"] = [(first, last) for first, last in fields["fences"]]
        inflating = zlib.decompressobj()
        chunks = inflating.decompress(rest, 8 * MAX_CHUNKS + 1)
        if not inflating.eof or len(chunks) > 8 * MAX_CHUNKS:
            raise ValueError("it has not as many chunks as a disk may have")
        return cls(**fields, chunks=from_bytes(memoryview(chunks)))


def _snapshot(clones: dict[str, Any], **fields: Any) -> Snapshot:
    return Snapshot(**fields, clones={disk: Clone(**each) for disk, each in clones.items()})


def resize(chunks: array[int], count: int) -> None:
    """Cut chunks off, or add such that are zeroes."""
    del chunks[count:]
    chunks.frombytes(bytes(8 * (count - len(chunks))))


def read_state(contents: memoryview, path: str) -> DiskState:
    """Return the state in an object that was opened.

    Raises:
        StorageError: there is none.

    """
    try:
        return DiskState.decode(contents)
    except (ValueError, KeyError, TypeError, zlib.error) as exc:
        raise damaged_error(path, str(exc)) from None
