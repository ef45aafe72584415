"""Frames: a part of a chunk or segment is read by itself, and is bound to its place."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from aiovblk.errors import StorageError
from aiovblk.storage.objects.codec import ObjectCodec, TornError
from aiovblk.storage.objects.frames import (
    FRAME,
    FrameTable,
    open_frame,
    open_frames,
    seal_frames,
    table_size,
    uncompressed_span,
)

DISK = bytes(16)
KEY = bytes(range(32))
SIZE = 2 * FRAME + 4096
OPTIONS: list[dict[str, Any]] = [{}, {"compress": True}, {"key": KEY}]


@pytest.fixture
def contents() -> bytes:
    return Random(1).randbytes(FRAME) + bytes(FRAME) + Random(2).randbytes(4096)


@pytest.mark.parametrize("size", [512, FRAME - 512, FRAME, FRAME + 512, 5 * FRAME])
@pytest.mark.parametrize("options", OPTIONS)
def test_contents_are_those_that_were_sealed(options: dict[str, Any], size: int) -> None:
    codec, data = ObjectCodec(DISK, **options), Random(size).randbytes(size)
    contents = open_frames(codec, "name", seal_frames(codec, "name", data), size)
    assert len(contents) == size
    assert bytes(contents[:]) == data
    random = Random(1)
    for _ in range(50):
        start = random.randrange(size)
        stop = random.randint(start, size)
        assert bytes(contents[start:stop]) == data[start:stop]


@pytest.mark.parametrize("options", OPTIONS)
def test_each_frame_is_read_by_itself(options: dict[str, Any], contents: bytes) -> None:
    codec = ObjectCodec(DISK, **options)
    data = seal_frames(codec, "name", contents)
    table = FrameTable.parse(data[: table_size(SIZE)], "name", "name", SIZE)
    for frame in range(3):
        begin, length = table.span(frame)
        if not options.get("compress"):
            assert uncompressed_span(codec, SIZE, frame) == (begin, length)
        found = open_frame(codec, "name", data[begin : begin + length], frame, SIZE)
        assert found == contents[frame * FRAME : (frame + 1) * FRAME]
        with pytest.raises(StorageError, match="is damaged"):
            open_frame(codec, "name", data[begin : begin + length], frame + 1, SIZE + FRAME)
        with pytest.raises(StorageError, match="is damaged"):
            open_frame(codec, "other", data[begin : begin + length], frame, SIZE)


@pytest.mark.parametrize("options", OPTIONS)
def test_frames_of_two_versions_do_not_mix(options: dict[str, Any], contents: bytes) -> None:
    codec = ObjectCodec(DISK, **options)
    first, second = (seal_frames(codec, f"chunks/{number}", contents) for number in range(2))
    at = FrameTable.parse(first, "chunks/0", "", SIZE).span(1)[0]
    mixed = first[:at] + second[at:]
    with pytest.raises(StorageError, match="is damaged"):
        open_frames(codec, "chunks/0", mixed, SIZE)


@pytest.mark.parametrize("key", [None, KEY])
def test_every_byte_of_an_object_counts(key: bytes | None) -> None:
    codec, contents = ObjectCodec(DISK, key=key), Random(1).randbytes(1024)
    data = seal_frames(codec, "name", contents)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(StorageError, match="name is damaged"):
            open_frames(codec, "name", changed, len(contents))


@pytest.mark.parametrize("length", [0, 7, 20, FRAME, -1])
def test_object_that_is_cut_off_is_torn(length: int, contents: bytes) -> None:
    codec = ObjectCodec(DISK)
    data = seal_frames(codec, "name", contents)
    with pytest.raises(TornError):
        open_frames(codec, "name", data[:length], SIZE)
    with pytest.raises(TornError):
        open_frames(codec, "name", bytes(len(data)), SIZE)


def test_object_of_another_length_is_damaged(contents: bytes) -> None:
    codec = ObjectCodec(DISK)
    data = seal_frames(codec, "name", contents)
    with pytest.raises(StorageError, match=r"it has \d+ bytes instead of"):
        open_frames(codec, "name", data + b"x", SIZE)
    with pytest.raises(StorageError, match=r"it has 3 frames for \d+ bytes"):
        open_frames(codec, "name", data, SIZE + FRAME)
    with pytest.raises(StorageError, match="frame 2 has 4096 bytes instead of 8192"):
        open_frames(codec, "name", data, SIZE + 4096)
