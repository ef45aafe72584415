"""BLOCK_STATUS with several metadata contexts: what is asked of the device, and what is bounded."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.bitmaps import DirtyExtent
from aiovblk.dispatch.block_status import BlockStatusAdapter, ContextRequest, select_contexts
from aiovblk.dispatch.holes import MAX_SENT_EXTENTS
from aiovblk.dispatch.memory_budget import request_cost
from aiovblk.dispatch.validation import RequestValidator
from aiovblk.protocol import (
    BlockStatus,
    Command,
    CommandFlag,
    ExportInfo,
    NegotiationResult,
    ReplyMode,
    Request,
    TransmissionFlag,
    serialize_context_selection,
)
from aiovblk.storage import MemoryDevice
from tests.support.bitmap_disk import BitmapDisk

SIZE = 1 << 20
ALLOCATION, OLD, NEW = "base:allocation", "qemu:dirty-bitmap:old", "qemu:dirty-bitmap:new"
REQ_ONE, PAYLOAD_LEN = int(CommandFlag.REQ_ONE), int(CommandFlag.PAYLOAD_LEN)

pytestmark = pytest.mark.one_loop


def agreement(
    *names: str, mode: ReplyMode = ReplyMode.EXTENDED, size: int = SIZE
) -> NegotiationResult:
    info = ExportInfo(size, TransmissionFlag.HAS_FLAGS)
    return NegotiationResult("", info, mode, {name: at for at, name in enumerate(names, 1)})


def disk() -> BitmapDisk:
    device = BitmapDisk(SIZE, "old", "new")
    device.mark("old", 4096, 8192)
    return device


async def ask(device: BlockDevice, *names: str, request: Request | None = None) -> Any:
    adapter = BlockStatusAdapter(device, agreement(*names), device.extents)
    request = request or Request(0, Command.BLOCK_STATUS, 1, 0, 65536)
    return list((await adapter.handle(request)).contexts)


async def test_each_context_is_a_part_of_the_reply_and_bit_0_means_dirty() -> None:
    assert await ask(disk(), NEW, ALLOCATION, OLD) == [
        BlockStatus(1, [(65536, 0)]),
        BlockStatus(2, [(65536, 3)]),
        BlockStatus(3, [(4096, 0), (8192, 1), (53248, 0)]),
    ]


async def test_only_the_selected_contexts_are_asked_for() -> None:
    device = disk()
    request = ContextRequest(PAYLOAD_LEN, Command.BLOCK_STATUS, 1, 4096, 512, 0, (3,))
    assert await ask(device, ALLOCATION, NEW, OLD, request=request) == [BlockStatus(3, [(512, 1)])]
    assert device.queries == [("old", 4096, 512)]


async def test_one_extent_of_each_context_where_one_is_asked_for() -> None:
    request = Request(REQ_ONE, Command.BLOCK_STATUS, 1, 4096, 65536)
    assert await ask(disk(), ALLOCATION, OLD, request=request) == [
        BlockStatus(1, [(65536, 3)]),
        BlockStatus(2, [(8192, 1)]),
    ]


class Endless(MemoryDevice):
    """A disk of which every other byte is dirty."""

    async def dirty_bitmaps(self) -> Sequence[str]:
        return ["new", "old"]

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        return [DirtyExtent(1, bool(at % 2)) for at in range(length)]


async def test_contexts_share_the_limit_of_extents() -> None:
    found = await ask(
        Endless(SIZE), OLD, NEW, request=Request(0, Command.BLOCK_STATUS, 1, 0, MAX_SENT_EXTENTS)
    )
    assert [len(each.extents) for each in found] == [MAX_SENT_EXTENTS // 2] * 2


async def test_bitmap_that_has_disappeared_is_not_supported() -> None:
    device = disk()
    del device.bitmaps["old"]
    with pytest.raises(OSError, match="no dirty bitmap 'old' any more") as caught:
        await ask(device, ALLOCATION, OLD)
    assert caught.value.errno == errno.ENOTSUP
    with pytest.raises(OSError, match="no dirty bitmap") as caught:
        await ask(MemoryDevice(SIZE), OLD)
    assert caught.value.errno == errno.ENOTSUP


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        ([], "dirty_extents returned none"),
        ([DirtyExtent(0, True)], "dirty_extents returned one of 0 bytes"),
        ([DirtyExtent(512, True), DirtyExtent(-1, True)], "dirty_extents returned one of -1"),
    ],
)
async def test_extents_that_cannot_be_are_a_bug(returned: list[DirtyExtent], why: str) -> None:
    class Broken(Endless):
        async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
            return returned

    with pytest.raises(ValueError, match=why):
        await ask(Broken(SIZE), OLD)


async def test_extents_end_with_the_range_that_was_asked_for() -> None:
    class Generous(Endless):
        async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
            return [DirtyExtent(512, True), DirtyExtent(length, True)]

    assert await ask(Generous(SIZE), OLD) == [BlockStatus(1, [(65536, 1)])]


# Requests with a payload


def select(payload: bytes, offset: int = 512) -> Request:
    request = Request(PAYLOAD_LEN, Command.BLOCK_STATUS, 7, offset, len(payload), 99)
    view = memoryview(bytearray(payload))
    selected = select_contexts(request, view, agreement(ALLOCATION, OLD))
    with pytest.raises(ValueError, match="released"):
        bytes(view)
    return selected


def test_payload_has_the_range_and_the_contexts() -> None:
    selected = select(serialize_context_selection(1 << 33, [2]))
    assert selected == ContextRequest(
        PAYLOAD_LEN, Command.BLOCK_STATUS, 7, 512, 1 << 33, contexts=(2,)
    )
    assert selected.arrival == 99


@pytest.mark.parametrize("ids", [[], [3], [1, 1], [1, 2, 1], [0]])
def test_selection_of_what_was_not_negotiated_is_invalid(ids: list[int]) -> None:
    negotiated = agreement(ALLOCATION, OLD)
    rules = RequestValidator(MemoryDevice(SIZE, block_size=512), negotiated)
    refused = select(serialize_context_selection(4096, ids))
    assert rules.error_for(refused) == errno.EINVAL
    assert rules.error_for(select(serialize_context_selection(4096, [1, 2]))) == 0


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (SIZE, 512), (512, SIZE), (0, 2**64 - 1), (0, 1 << 63)]
)
def test_range_of_a_payload_must_lie_in_the_device(offset: int, length: int) -> None:
    rules = RequestValidator(MemoryDevice(SIZE, block_size=1), agreement(ALLOCATION, OLD))
    request = select(serialize_context_selection(length, [1]), offset)
    assert rules.error_for(request) == errno.EINVAL


@pytest.mark.parametrize(
    ("names", "mode", "error"),
    [
        ((OLD,), ReplyMode.EXTENDED, 0),
        ((OLD,), ReplyMode.STRUCTURED, errno.EINVAL),
        ((), ReplyMode.EXTENDED, errno.EINVAL),
    ],
)
def test_payload_needs_extended_headers_and_contexts(
    names: tuple[str, ...], mode: ReplyMode, error: int
) -> None:
    device = MemoryDevice(SIZE, block_size=512)
    rules = RequestValidator(device, agreement(*names, mode=mode))
    request = ContextRequest(PAYLOAD_LEN, Command.BLOCK_STATUS, 7, 0, 512, contexts=(1,))
    assert rules.error_for(request) == error


def test_request_is_charged_the_same_before_and_after_its_payload_is_parsed() -> None:
    payload = serialize_context_selection(1 << 40, [2])
    request = Request(PAYLOAD_LEN, Command.BLOCK_STATUS, 7, 0, len(payload))
    assert request_cost(request) == request_cost(select(payload)) > MAX_SENT_EXTENTS * 100
