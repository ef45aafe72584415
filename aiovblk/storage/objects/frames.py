"""Divide chunks and segments into frames of 64 KiB, so that a part of them can be read by itself.

An object with frames is a table and the frames behind it, each sealed by itself (:mod:`.codec`)::

    magic     4   b"avbf"
    count     4   of frames
    check     4   CRC-32 of the object's name and the lengths
    reserved  4   0
    lengths   4 for each frame: its bytes as it is stored

all numbers little-endian. Every frame has 64 KiB of the contents, but the last may have less. Where
frames are not compressed, their lengths follow from that of the contents, so that a frame can be
read without the table.

What holds here: how many bytes the contents have is known before, from the manifest or the disk's
history, so an object cannot be cut off, or extended, unnoticed.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from dataclasses import dataclass

from .client import Buffer
from .codec import ObjectCodec, damaged_error, torn_error

FRAME = 64 << 10
"""Bytes of the contents in each frame but the last."""

_HEAD = struct.Struct("<4sIII")
_MAGIC = b"avbf"


def frame_count(size: int) -> int:
    """Return the number of frames of ``size`` bytes of contents."""
    return -(-size // FRAME)


def table_size(size: int) -> int:
    """Return the bytes before the first frame of ``size`` bytes of contents."""
    return _HEAD.size + 4 * frame_count(size)


def seal_frames(codec: ObjectCodec, name: str, contents: Buffer) -> bytes:
    """Encode an object of that name with these contents."""
    view = memoryview(contents)
    frames = [
        codec.seal_pieces(name, view[number * FRAME : (number + 1) * FRAME], part=number)
        for number in range(frame_count(len(view)))
    ]
    lengths = _to_bytes(array("I", (sum(map(len, pieces)) for pieces in frames)))
    check = zlib.crc32(lengths, zlib.crc32(name.encode()))
    head = _HEAD.pack(_MAGIC, len(frames), check, 0)
    return b"".join((head, lengths, *(piece for pieces in frames for piece in pieces)))


def uncompressed_span(codec: ObjectCodec, size: int, frame: int) -> tuple[int, int]:
    """Return where a frame begins in an object that is not compressed, and its bytes.

    Args:
        codec: of the disk.
        size: bytes of the object's contents.
        frame: its number.

    """
    begin = table_size(size) + frame * (codec.overhead + FRAME)
    return begin, codec.overhead + min(FRAME, size - frame * FRAME)


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Where the frames of one object are."""

    offsets: array[int]
    """Of each frame in the object, and the object's bytes."""

    @classmethod
    def parse(cls, data: Buffer, name: str, shown: str, size: int) -> FrameTable:
        """Decode the table at the beginning of an object.

        Args:
            data: the object, or its beginning: at least :func:`table_size` bytes.
            name: of the object.
            shown: its name in messages.
            size: bytes of its contents.

        Raises:
            TornError: it was never written as a whole.
            StorageError: it is damaged.

        """
        if len(data) < _HEAD.size:
            raise torn_error(shown, "it is too short")
        magic, count, check, reserved = _HEAD.unpack_from(data)
        if not any(data[: _HEAD.size]):
            raise torn_error(shown, "it is all zeroes")
        if magic != _MAGIC or reserved:
            raise damaged_error(shown, "it has no table of frames")
        if count != frame_count(size):
            raise damaged_error(shown, f"it has {count} frames for {size} bytes")
        encoded = bytes(data[_HEAD.size : table_size(size)])
        if len(encoded) < 4 * count:
            raise torn_error(shown, "its table of frames is cut off")
        if zlib.crc32(encoded, zlib.crc32(name.encode())) != check:
            raise damaged_error(shown, "the checksum of its table does not match")
        offsets = array("Q", [table_size(size)])
        for length in _from_bytes(encoded):
            offsets.append(offsets[-1] + length)
        return cls(offsets)

    def span(self, frame: int) -> tuple[int, int]:
        """Return where a frame begins in the object, and its bytes."""
        return self.offsets[frame], self.offsets[frame + 1] - self.offsets[frame]


class FramedContents:
    """The contents of an object with frames, without a copy; slices are views, or joined frames.

    Args:
        frames: contents of each.
        size: bytes of all.

    """

    __slots__ = ("_frames", "_size")

    def __init__(self, frames: list[memoryview], size: int) -> None:
        self._frames = frames
        self._size = size

    def __len__(self) -> int:
        """Return the bytes of all."""
        return self._size

    def __getitem__(self, part: slice) -> memoryview:
        """Return consecutive bytes."""
        start, stop, _ = part.indices(self._size)
        first, last = start // FRAME, (stop - 1) // FRAME
        if first >= last:
            begin = first * FRAME
            return self._frames[first][start - begin : stop - begin]
        pieces = [
            self._frames[first][start - first * FRAME :],
            *self._frames[first + 1 : last],
            self._frames[last][: stop - last * FRAME],
        ]
        return memoryview(b"".join(pieces))


Contents = memoryview | FramedContents
"""What an object holds; a slice of it is a read-only view."""


def open_frame(codec: ObjectCodec, name: str, data: Buffer, frame: int, size: int) -> memoryview:
    """Decode one frame.

    Args:
        codec: of the disk.
        name: of the object.
        data: the frame, as it is stored.
        frame: its number.
        size: bytes of the object's contents.

    Raises:
        StorageError: it is damaged.

    """
    expected = min(FRAME, size - frame * FRAME)
    contents = codec.open(name, data, longest=FRAME, part=frame)
    if len(contents) != expected:
        reason = f"frame {frame} has {len(contents)} bytes instead of {expected}"
        raise damaged_error(codec.display_name(name), reason)
    return contents


def open_frames(codec: ObjectCodec, name: str, data: Buffer, size: int) -> FramedContents:
    """Decode a whole object.

    Args:
        codec: of the disk.
        name: of the object.
        data: the object.
        size: bytes of its contents.

    Raises:
        TornError: it was never written as a whole.
        StorageError: it is damaged.

    """
    shown = codec.display_name(name)
    table = FrameTable.parse(data, name, shown, size)
    if len(data) < table.offsets[-1]:
        raise torn_error(shown, f"it has {len(data)} bytes instead of {table.offsets[-1]}")
    if len(data) > table.offsets[-1]:
        raise damaged_error(shown, f"it has {len(data)} bytes instead of {table.offsets[-1]}")
    view = memoryview(data)
    spans = [table.span(frame) for frame in range(frame_count(size))]
    frames = [
        open_frame(codec, name, view[begin : begin + length], frame, size)
        for frame, (begin, length) in enumerate(spans)
    ]
    return FramedContents(frames, size)


def _to_bytes(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _from_bytes(data: bytes) -> array[int]:
    numbers = array("I")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
