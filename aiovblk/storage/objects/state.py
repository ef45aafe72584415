"""Compute the state of a disk at one record of its history, and encode it as a checkpoint.

A state is the result of all records up to one, applied in order. A checkpoint is a state that is
stored, so that the records before it are not needed to open the disk.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from .codec import damaged_error, from_bytes, split, to_bytes, to_line
from .extents import ExtentMap, PackedRuns, Placed, gather, pack, unpack
from .keys import MAX_CHUNKS, first_version
from .records import Record, RecordKind

_MAX_RUNS_SIZE = 256 << 20  # bytes of all runs of a state, far more than a writer lets there be


@dataclass(frozen=True, slots=True)
class Clone:
    """A disk that shares the chunks of a snapshot."""

    path: str
    """Its folder, seen from the store's root."""
    time: float
    """When it was made, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state with a name."""

    sequence: int
    """The number of its record."""
    size: int
    """Bytes of the disk then."""
    time: float
    """When it was taken, in seconds since the epoch by the clock of the process that did."""
    clones: dict[str, Clone] = field(default_factory=dict)
    """The disks that share its chunks, by identity."""


@dataclass(slots=True)
class DiskState:
    """A disk at one record of its history."""

    size: int
    chunks: array[int]
    """The entry of each chunk."""
    sequence: int = 0
    """The number of the last record."""
    contents: str = ""
    """The nonce of the last COMMIT, which identifies the disk's data."""
    epoch: int = 0
    """How often a writer has opened the disk: the number of the present one."""
    holder: str = ""
    """The last writer, for messages."""
    unclosed: int = 0
    """The last record of that writer, if it has not closed the disk."""
    floor: int = 0
    """Lower versions that are not in the map will never be in it."""
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    extents: ExtentMap = field(default_factory=ExtentMap)
    """The runs over the chunks."""
    converted: int = 0
    """The record that has made format 3 of a disk of an earlier one; 0 if there is none."""
    fences: list[tuple[int, int]] = field(default_factory=list)
    """First and last of the records that must be kept, for fencing: a writer that was never closed,
    and may still believe that it is the writer, finds them where it would add its own. The first is
    its own last record, whose response may have been lost."""

    @property
    def newest_snapshot(self) -> int:
        """The record of the newest snapshot; 0 without snapshots."""
        return max((each.sequence for each in self.snapshots.values()), default=0)

    def apply(self, record: Record, chunk_size: int) -> None:
        """Apply the next record."""
        self.sequence += 1
        match record.kind:
            case RecordKind.OPEN:
                if self.unclosed:
                    self.fences.append((self.unclosed, self.sequence))
                self.epoch += 1
                self.holder = record.holder
                self.unclosed = self.sequence
                self.floor = first_version(self.epoch)
            case RecordKind.COMMIT:
                self._commit(record, chunk_size)
            case RecordKind.CLOSE:
                self.unclosed = 0
            case RecordKind.SNAPSHOT:
                self.snapshots[record.name] = Snapshot(self.sequence, self.size, record.time)
            case RecordKind.DROP:
                self.snapshots.pop(record.name, None)
            case RecordKind.CLONE:
                clone = Clone(record.path, record.time)
                self.snapshots[record.name].clones[record.disk] = clone
            case RecordKind.RELEASE:
                for snapshot in self.snapshots.values():
                    snapshot.clones.pop(record.disk, None)

            case RecordKind.CONVERT:
                self.unclosed = self.converted = self.sequence

    def _commit(self, record: Record, chunk_size: int) -> None:
        self.unclosed = self.sequence
        if not record.moved:
            self.contents = record.nonce
        self.floor = record.floor
        before, self.size = len(self.chunks), record.size
        resize(self.chunks, -(-record.size // chunk_size))
        for index in range(len(self.chunks), before):
            self.extents.clear(index)
        for index, entry in zip(record.indices, record.entries, strict=True):
            self.extents.clear(index)
            if index < len(self.chunks):  # otherwise it was cut off since
                self.chunks[index] = entry
        self._lay(record.runs, record.sources)

    def _lay(self, placed: Iterable[Placed], sources: Iterable[tuple[int, int]]) -> None:
        """Lay runs over the chunks, but for those of chunks that were cut off since."""
        inside = [each for each in placed if each[0] < len(self.chunks)]
        self.extents.lay(inside, dict(sources))
        self.extents.unused.clear()

    def reflects(self, record: Record, sequence: int) -> bool:
        """Whether the effect of a record of this number is in the state; not of COMMIT and CLOSE.

        For a process that has added a record, and cannot know whether that counts: there may have
        been another one of that number, which was deleted after a checkpoint.
        """
        clones = (each.clones for each in self.snapshots.values())
        snapshot = self.snapshots.get(record.name)
        match record.kind:
            case RecordKind.OPEN:  # as long as this is so, that record is not deleted
                return self.unclosed == sequence
            case RecordKind.SNAPSHOT:
                taken = (sequence, record.time)
                return snapshot is not None and (snapshot.sequence, snapshot.time) == taken
            case RecordKind.DROP:  # there may be a newer one of that name
                return snapshot is None or snapshot.sequence > sequence
            case RecordKind.CLONE:
                return any(record.disk in each for each in clones)
            case RecordKind.RELEASE:
                return not any(record.disk in each for each in clones)
        return False

    def copy(self) -> DiskState:
        """Return an independent copy."""
        return replace(
            self,
            chunks=self.chunks[:],
            snapshots={
                name: replace(each, clones=dict(each.clones))
                for name, each in self.snapshots.items()
            },
            fences=list(self.fences),
            extents=self.extents.copy(),
        )

    def encode(self, block_size: int) -> bytes:
        """Encode a checkpoint, to be sealed. It takes milliseconds for each MiB of the map."""
        runs, data = gather(self.extents, block_size)
        packed = pack(runs, self.extents.sizes)
        chunks = zlib.compress(to_bytes(self.chunks), 1)
        words = zlib.compress(to_bytes(packed.words), 1) if runs else b""
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
            "converted": self.converted,
            # Absent in formats 1 and 2, where the map is all that follows.
            "map": len(chunks),
            "runs": len(words),
            "sources": packed.sources,
        }
        return b"".join((to_line(fields), chunks, words, data))

    @classmethod
    def decode(cls, data: memoryview, block_size: int) -> Self:
        """Decode a checkpoint, as :meth:`encode` has made it, or an earlier version."""
        fields, rest = split(data)
        fields["snapshots"] = {
            name: _snapshot(**each) for name, each in fields["snapshots"].items()
        }
        fields["fences"] = [(first, last) for first, last in fields["fences"]]
        length, runs = fields.pop("map", len(rest)), fields.pop("runs", 0)
        sources = [(source, blocks) for source, blocks in fields.pop("sources", ())]
        chunks = from_bytes(_inflate(rest[:length], 8 * MAX_CHUNKS))
        state = cls(**fields, chunks=chunks)
        if runs:
            words = from_bytes(_inflate(rest[length : length + runs], _MAX_RUNS_SIZE))
            packed = PackedRuns(words, sources)
            state._lay(unpack(packed, rest[length + runs :], block_size), sources)
        return state


def _inflate(data: memoryview, longest: int) -> memoryview:
    inflating = zlib.decompressobj()
    inflated = inflating.decompress(data, longest + 1)
    if not inflating.eof or len(inflated) > longest:
        raise ValueError(f"its map is cut off, or has more than {longest // 8} numbers")
    return memoryview(inflated)


def _snapshot(clones: dict[str, Any], **fields: Any) -> Snapshot:
    return Snapshot(**fields, clones={disk: Clone(**each) for disk, each in clones.items()})


def resize(chunks: array[int], count: int) -> None:
    """Cut entries off, or add entries of zeroes, so that there are ``count``."""
    del chunks[count:]
    chunks.frombytes(bytes(8 * (count - len(chunks))))


def read_state(contents: memoryview, path: str, block_size: int) -> DiskState:
    """Return the state in the contents of a checkpoint.

    Args:
        contents: of the object.
        path: of the object, for messages.
        block_size: bytes.

    Raises:
        StorageError: (EIO) it is no state.

    """
    try:
        return DiskState.decode(contents, block_size)
    except (ValueError, KeyError, TypeError, IndexError, zlib.error) as exc:
        raise damaged_error(path, str(exc)) from None
