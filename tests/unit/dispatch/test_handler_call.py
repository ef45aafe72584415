"""HandlerAdapter: the handler calls for each request, and the content of its reply."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from aiovblk import BlockDevice, Extent
from aiovblk.dispatch.handler_call import HandlerAdapter
from aiovblk.dispatch.holes import MAX_SENT_EXTENTS, MIN_HOLE_SIZE
from aiovblk.protocol import (
    BlockStatus,
    Command,
    CommandFlag,
    ExportInfo,
    NegotiationResult,
    ReplyContent,
    ReplyMode,
    Request,
    SparseData,
    TransmissionFlag,
)

from ...support.recording_device import Recorder

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, RESIZE = Command
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = CommandFlag

BLOCK = 512
SIZE = 1 << 20
HOLE, ZERO = 1, 2


class PatchworkDevice(Recorder):
    """A device whose extents a test sets."""

    block_size = BLOCK
    blocks = SIZE // BLOCK

    def __init__(self, extents: Sequence[Extent] = ()) -> None:
        super().__init__()
        self.result = list(extents)
        self.reads: list[tuple[int, int]] = []
        content = bytearray(Random(1).randbytes(SIZE))
        at = 0
        for extent in extents:
            if extent.zero:
                content[at : at + extent.length] = bytes(len(content[at : at + extent.length]))
            at += extent.length
        self.content = bytes(content[:SIZE])

    async def read(self, offset: int, length: int) -> bytes:
        await super().read(offset, length)
        self.reads.append((offset, length))
        return self.content[offset : offset + length]

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        await super().extents(offset, length)
        found: list[Extent] = []
        at = 0
        for extent in self.result:
            begin, at = at, at + extent.length
            if at > offset or extent.length < 1:
                found.append(extent._replace(length=at - max(begin, offset)))
        return found


async def call(
    device: BlockDevice,
    command: Command,
    offset: int = 0,
    length: int = 0,
    *,
    flags: int = 0,
    mode: ReplyMode = ReplyMode.STRUCTURED,
    payload: bytes | None = None,
) -> ReplyContent:
    agreement = NegotiationResult("", ExportInfo(SIZE, TransmissionFlag.HAS_FLAGS), mode, 7)
    view = None if payload is None else memoryview(payload)
    handle = HandlerAdapter(device, agreement, None).handle
    return await handle(Request(flags, command, 1, offset, length), view)


@pytest.mark.parametrize(
    ("command", "flags", "calls"),
    [
        (READ, 0, [("read", 512, 1024)]),
        (READ, FUA, [("read", 512, 1024)]),
        (WRITE, 0, [("write", 512, b"w" * 1024)]),
        (WRITE, FUA | PAYLOAD_LEN, [("write", 512, b"w" * 1024), ("flush",)]),
        (FLUSH, 0, [("flush",)]),
        (FLUSH, FUA, [("flush",)]),
        (TRIM, 0, [("trim", 512, 1024)]),
        (TRIM, FUA, [("trim", 512, 1024), ("flush",)]),
        (WRITE_ZEROES, 0, [("write_zeroes", 512, 1024, True)]),
        (WRITE_ZEROES, NO_HOLE, [("write_zeroes", 512, 1024, False)]),
        (WRITE_ZEROES, FAST_ZERO, [("write_zeroes", 512, 1024, True)]),
        (WRITE_ZEROES, NO_HOLE | FUA, [("write_zeroes", 512, 1024, False), ("flush",)]),
        (CACHE, 0, [("cache", 512, 1024)]),
        (CACHE, FUA, [("cache", 512, 1024)]),
        (BLOCK_STATUS, FUA, [("extents", 512, 1024)]),
    ],
)
@pytest.mark.one_loop
async def test_command_with_its_flags_is_these_calls(
    command: Command, flags: int, calls: list[tuple[object, ...]]
) -> None:
    device = PatchworkDevice([Extent(SIZE)])
    payload = b"w" * 1024 if command is WRITE else None
    await call(device, command, 512, 1024, flags=flags, payload=payload)
    assert device.calls == calls


# BLOCK_STATUS


@pytest.mark.parametrize(
    ("returned", "length", "extents"),
    [
        ([Extent(SIZE)], 4096, [(4096, 0)]),
        ([Extent(1024, hole=True, zero=True), Extent(SIZE)], 4096, [(1024, 3), (3072, 0)]),
        ([Extent(1024, hole=True), Extent(1024, zero=True)], 2048, [(1024, HOLE), (1024, ZERO)]),
        ([Extent(512), Extent(512), Extent(1, zero=True)], 4096, [(1024, 0), (1, ZERO)]),
        ([Extent(512, zero=True)] * 8, 4096, [(4096, ZERO)]),
        ([Extent(4096), Extent(4096, zero=True)], 4096, [(4096, 0)]),
        ([Extent(512)], 4096, [(512, 0)]),
    ],
)
@pytest.mark.one_loop
async def test_block_status_merges_equal_neighbours_and_ends_with_the_range(
    returned: list[Extent], length: int, extents: list[tuple[int, int]]
) -> None:
    device = PatchworkDevice(returned)
    assert await call(device, BLOCK_STATUS, 0, length) == BlockStatus(7, extents)
    status = await call(device, BLOCK_STATUS, 0, length, flags=REQ_ONE)
    assert status == BlockStatus(7, extents[:1])


@pytest.mark.one_loop
async def test_block_status_without_extents_of_its_own_is_all_data() -> None:
    class Plain(BlockDevice):
        blocks = 256

    assert await call(Plain(), BLOCK_STATUS, 4096, 8192) == BlockStatus(7, [(8192, 0)])


@pytest.mark.one_loop
async def test_block_status_of_too_many_extents_has_the_first_of_them() -> None:
    device = PatchworkDevice([Extent(1, zero=bool(at % 2)) for at in range(MAX_SENT_EXTENTS + 1)])
    status = await call(device, BLOCK_STATUS, 0, SIZE)
    assert isinstance(status, BlockStatus)
    assert len(status.extents) == MAX_SENT_EXTENTS


@pytest.mark.parametrize(
    ("returned", "why"), [([], "none"), ([Extent(0)], "0 bytes"), ([Extent(512), Extent(-1)], "-1")]
)
@pytest.mark.parametrize("command", [BLOCK_STATUS, READ])
@pytest.mark.one_loop
async def test_extents_that_cannot_be_are_the_devices_bug(
    command: Command, returned: list[Extent], why: str
) -> None:
    device = PatchworkDevice()
    device.result = returned
    with pytest.raises(ValueError, match=why):
        await call(device, command, 0, SIZE)


@pytest.mark.one_loop
async def test_extents_of_a_division_are_the_devices_bug() -> None:
    device = PatchworkDevice()
    device.result = [Extent(SIZE / 2), Extent(SIZE / 2, True)]  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match="float"):
        await call(device, BLOCK_STATUS, 0, SIZE)


# READ around holes


@pytest.mark.parametrize(
    ("mode", "flags", "length"),
    [
        (ReplyMode.SIMPLE, 0, SIZE),
        (ReplyMode.STRUCTURED, DF, SIZE),
        (ReplyMode.EXTENDED, DF | FUA, SIZE),
        (ReplyMode.STRUCTURED, 0, MIN_HOLE_SIZE),
    ],
)
@pytest.mark.one_loop
async def test_read_that_may_not_be_in_pieces_is_whole(
    mode: ReplyMode, flags: int, length: int
) -> None:
    device = PatchworkDevice([Extent(SIZE, hole=True, zero=True)])
    assert await call(device, READ, 0, length, mode=mode, flags=flags) == bytes(length)
    assert device.calls == [("read", 0, length)]


@pytest.mark.parametrize(
    ("extents", "pieces"),
    [
        ([Extent(SIZE, zero=True)], [SIZE]),
        ([Extent(SIZE, hole=True)], [SIZE * b"d"]),
        ([Extent(SIZE - MIN_HOLE_SIZE), Extent(MIN_HOLE_SIZE, zero=True)], [b"d", MIN_HOLE_SIZE]),
        ([Extent(MIN_HOLE_SIZE - 1, zero=True), Extent(SIZE)], [b"d"]),
        # Blocks that are zeroes only in part are read.
        (
            [Extent(1), Extent(2 * MIN_HOLE_SIZE, zero=True), Extent(SIZE)],
            [b"d" * BLOCK, 2 * MIN_HOLE_SIZE - BLOCK, b"d"],
        ),
        # An answer that ends early says nothing of the rest.
        ([Extent(MIN_HOLE_SIZE, zero=True)], [MIN_HOLE_SIZE, b"d"]),
    ],
)
@pytest.mark.one_loop
async def test_read_leaves_out_holes_that_are_worth_it(
    extents: list[Extent], pieces: list[bytes | int]
) -> None:
    device = PatchworkDevice(extents)
    content = await call(device, READ, 0, SIZE)
    got = content.pieces if isinstance(content, SparseData) else [content]
    assert [each if isinstance(each, int) else "data" for each in got] == [
        each if isinstance(each, int) else "data" for each in pieces
    ]
    assert plain(content) == device.content


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.one_loop
async def test_read_around_random_holes_is_what_the_device_has(seed: int) -> None:
    random = Random(seed)
    extents: list[Extent] = []
    while sum(extent.length for extent in extents) < SIZE:
        length = random.choice([random.randint(1, 1000), random.randint(1, 300_000)])
        extents.append(Extent(length, zero=random.random() < 0.6, hole=random.random() < 0.5))
    if random.random() < 0.2:
        extents.pop()  # an answer that ends early
    device = PatchworkDevice(extents)
    for _ in range(5):
        begin, end = sorted(random.sample(range(0, SIZE + 1, BLOCK), 2))
        if not any(extent.length for extent in await device.extents(begin, end - begin)):
            continue
        device.reads.clear()
        content = await call(device, READ, begin, end - begin)
        assert plain(content) == device.content[begin:end]
        for offset, length in device.reads:
            assert offset % BLOCK == length % BLOCK == 0
            assert length
        if isinstance(content, SparseData):
            assert_worth_it(begin, content)


def plain(content: ReplyContent) -> bytes:
    """Return the bytes that the content of a READ's reply represents."""
    if not isinstance(content, SparseData):
        assert isinstance(content, bytes | memoryview)
        return bytes(content)
    return b"".join(bytes(piece) for piece in content.pieces)  # bytes(n) is n zeroes


def assert_worth_it(offset: int, content: SparseData) -> None:
    """Check that holes are whole blocks and large, and that there are no empty pieces."""
    before: object = None
    for piece in content.pieces:
        length = piece if isinstance(piece, int) else len(piece)
        assert offset % BLOCK == length % BLOCK == 0
        assert length
        if isinstance(piece, int):
            assert length >= MIN_HOLE_SIZE
        else:
            assert before is None or isinstance(before, int), "data could be in one piece"
        offset += length
        before = piece
