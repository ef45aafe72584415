"""What the objects of a disk say: its description, its history, and its state at a moment.

A disk is a folder of an object store::

    disk.json                       Description: what never changes
    log/<number>                    Record: one step of its history each, from 1 on
    map/<number>                    State: the sum of all records up to that number
    chunks/<index>-<version>        the bytes of one chunk, written once and never changed
    lease                           who writes, and that it lives

All but ``disk.json`` and ``lease`` are sealed. Records are made by conditional puts
("if there is none"), so that of two writers one succeeds: the order of the records is the truth,
and whoever finds another writer's ``open`` where its own next record should be has been fenced.

A chunk is known by its entry, a number of 64 bits: 0 for zeroes, else from the top 12 bits of
origin (0 the disk itself, others an ancestor in its description), 20 of the writer's epoch, 32 of a
counter within it.
"""

from __future__ import annotations

import errno
import json
import re
import sys
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from ...errors import StorageError
from .sealing import damaged
from .store import Buffer, Found

FORMAT = "aiovblk-disk"
VERSION = 1

DESCRIPTION = "disk.json"
LEASE = "lease"
LOG, MAP, CHUNKS = "log", "map", "chunks"

MOST_CHUNKS = 1 << 24
"""Of one disk; the map has 8 bytes for each in memory, and less where it is stored."""

_VERSION_BITS = 52
_COUNTER_BITS = 32
MOST_EPOCHS = 1 << (_VERSION_BITS - _COUNTER_BITS)
MOST_ORIGINS = 1 << (64 - _VERSION_BITS)
ORIGIN_STEP = 1 << _VERSION_BITS
"""From an entry to that of the same chunk in a clone."""


_NUMBERED = re.compile(rf"(?:{LOG}|{MAP})/([0-9a-f]{{12}})")
_CHUNK = re.compile(rf"{CHUNKS}/([0-9a-f]{{8}})-([0-9a-f]{{13}})")


def log_name(sequence: int) -> str:
    """The name of a record."""
    return f"{LOG}/{sequence:012x}"


def map_name(sequence: int) -> str:
    """The name of a state."""
    return f"{MAP}/{sequence:012x}"


def number_in(path: str) -> int | None:
    """The number of a record or state; None for what somebody else has put there."""
    name = _NUMBERED.fullmatch(path)
    return int(name[1], 16) if name else None


def numbers_in(found: Iterable[Found]) -> list[int]:
    """The numbers of records or states that a list has."""
    return [number for each in found if (number := number_in(each.path)) is not None]


def chunk_name(index: int, version: int) -> str:
    """The name of a chunk."""
    return f"{CHUNKS}/{index:08x}-{version:013x}"


def chunk_in(path: str) -> tuple[int, int] | None:
    """The index and the version of a chunk; None for what somebody else has put there."""
    name = _CHUNK.fullmatch(path)
    return (int(name[1], 16), int(name[2], 16)) if name else None


def is_name(path: str) -> bool:
    """Whether it is the name of a record, a state or a chunk."""
    return number_in(path) is not None or chunk_in(path) is not None


def entry_parts(entry: int) -> tuple[int, int]:
    """The origin and the version of an entry."""
    return entry >> _VERSION_BITS, entry & ((1 << _VERSION_BITS) - 1)


def first_version(epoch: int) -> int:
    """The version before the first that a writer of this epoch makes."""
    return epoch << _COUNTER_BITS


@dataclass(frozen=True, slots=True)
class Origin:
    """An ancestor, some of whose chunks a clone shares."""

    path: str
    """Its folder, seen from the store's root."""
    disk: str
    """Its identity."""


@dataclass(frozen=True, slots=True)
class Description:
    """What never changes about a disk."""

    disk: str
    """Its identity, 32 hexadecimal digits."""
    size: int
    """Bytes, when it was made."""
    block_size: int
    chunk_size: int
    compress: bool
    key_check: str | None
    """A sealed object, in hexadecimal digits, that only the right key opens; None: no encryption"""
    origins: tuple[Origin, ...] = ()
    """Ancestors, number 1 first."""

    def encode(self) -> bytes:
        """Return the object."""
        fields = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(fields, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """Return what an object says.

        Raises:
            StorageError: it is no disk's, a later version's, or damaged.

        """
        try:
            fields = json.loads(bytes(data))
            kind, version = fields.pop("format"), fields.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError):
            kind, version = None, None
        if kind != FORMAT:
            raise StorageError(errno.EINVAL, f"{DESCRIPTION} is not that of a disk of aiovblk")
        if version != VERSION:
            reason = f"the disk has format {version}, this aiovblk knows {VERSION} only; upgrade it"
            raise StorageError(errno.EINVAL, reason)
        try:
            origins = tuple(Origin(**each) for each in fields.pop("origins"))
            description = cls(**fields, origins=origins)
            bytes.fromhex(description.disk + (description.key_check or ""))
        except (ValueError, TypeError, KeyError) as exc:
            raise damaged(DESCRIPTION, str(exc)) from None
        return description

    @property
    def identity(self) -> bytes:
        """What the disk's objects are bound to."""
        return bytes.fromhex(self.disk)


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
    indices: array[int] = field(default_factory=lambda: array("Q"))
    """COMMIT: the chunks that have changed."""
    entries: array[int] = field(default_factory=lambda: array("Q"))
    """COMMIT: and what they are now."""

    def encode(self) -> bytes:
        """Return what is sealed."""
        fields = {
            name: value
            for name in ("kind", "nonce", "holder", "size", "floor", "name", "time", "disk", "path")
            if (value := getattr(self, name))
        }
        return b"".join((_line(fields), _to_bytes(self.indices), _to_bytes(self.entries)))

    @classmethod
    def decode(cls, data: memoryview) -> Self:
        """Return what was sealed."""
        fields, rest = _split(data)
        half = len(rest) // 2
        return cls(
            **{**fields, "kind": Kind(fields["kind"])},
            indices=_from_bytes(rest[:half]),
            entries=_from_bytes(rest[half:]),
        )


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
class State:
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

    def shows(self, record: Record, sequence: int) -> bool:
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

    def copy(self) -> State:
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
        return _line(fields) + zlib.compress(_to_bytes(self.chunks), 1)

    @classmethod
    def decode(cls, data: memoryview) -> Self:
        """Return what was sealed."""
        fields, rest = _split(data)
        fields["snapshots"] = {
            name: _snapshot(**each) for name, each in fields["snapshots"].items()
        }
        fields["fences"] = [(first, last) for first, last in fields["fences"]]
        inflating = zlib.decompressobj()
        chunks = inflating.decompress(rest, 8 * MOST_CHUNKS + 1)
        if not inflating.eof or len(chunks) > 8 * MOST_CHUNKS:
            raise ValueError("it has not as many chunks as a disk may have")
        return cls(**fields, chunks=_from_bytes(memoryview(chunks)))


def _snapshot(clones: dict[str, Any], **fields: Any) -> Snapshot:
    return Snapshot(**fields, clones={disk: Clone(**each) for disk, each in clones.items()})


def resize(chunks: array[int], count: int) -> None:
    """Cut chunks off, or add such that are zeroes."""
    del chunks[count:]
    chunks.frombytes(bytes(8 * (count - len(chunks))))


def read_record(contents: memoryview, path: str) -> Record:
    """Return the record in an object that was opened.

    Raises:
        StorageError: there is none.

    """
    try:
        return Record.decode(contents)
    except (ValueError, KeyError, TypeError) as exc:
        raise damaged(path, str(exc)) from None


def read_state(contents: memoryview, path: str) -> State:
    """Return the state in an object that was opened.

    Raises:
        StorageError: there is none.

    """
    try:
        return State.decode(contents)
    except (ValueError, KeyError, TypeError, zlib.error) as exc:
        raise damaged(path, str(exc)) from None


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _split(data: memoryview) -> tuple[dict[str, Any], memoryview]:
    line, _, _ = bytes(data[:_LONGEST_LINE]).partition(b"\n")
    return json.loads(line), data[len(line) + 1 :]


_LONGEST_LINE = 16 << 20


def _to_bytes(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _from_bytes(data: memoryview) -> array[int]:
    numbers = array("Q")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
