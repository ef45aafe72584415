"""What every layer does: forward to the inner device, and have no handler that it lacks."""

from __future__ import annotations

import errno

import pytest

from aiovblk.device import BlockDevice, Extent, Operation, can
from aiovblk.storage import Layer, MemoryDevice

from ...support.recording_device import Recorder

HANDLERS: list[Operation] = ["read", "write", "flush", "trim", "write_zeroes", "extents", "cache"]


class Everything(Recorder):
    """A device with all handlers, and no attribute at its default."""

    block_size = 512
    blocks = 8
    rotational = True
    multi_conn = True


class OnlyReads(BlockDevice):
    blocks = 4

    async def read(self, offset: int, length: int) -> bytes:
        return b"r" * length


class Twice(Layer):
    """A layer with a write and a flush of its own."""

    async def write(self, offset: int, data: memoryview) -> None:
        await self.inner.write(offset, data)
        await self.inner.write(offset, data)

    async def flush(self) -> None:
        await self.inner.flush()


class Promises(Twice):
    provides = frozenset({"flush"})


async def test_all_requests_reach_the_inner_device() -> None:
    inner = Everything()
    layer = Layer(inner)
    assert await layer.read(512, 1024) == bytes(1024)
    await layer.write(0, memoryview(b"x" * 512))
    await layer.flush()
    await layer.trim(0, 512)
    await layer.write_zeroes(512, 512, may_trim=True)
    assert await layer.extents(0, 512) == [Extent(512, hole=True, zero=True)]
    await layer.cache(0, 512)
    await layer.unmount()
    assert inner.calls == [
        ("read", 512, 1024),
        ("write", 0, b"x" * 512),
        ("flush",),
        ("trim", 0, 512),
        ("write_zeroes", 512, 512, True),
        ("extents", 0, 512),
        ("cache", 0, 512),
        ("unmount",),
    ]


def test_geometry_is_that_of_the_inner_device() -> None:
    inner = Everything()
    layer = Layer(inner)
    assert (layer.block_size, layer.blocks, layer.size) == (512, 8, 4096)
    assert layer.rotational
    assert layer.multi_conn
    inner.blocks = 16
    assert layer.blocks == 16
    layer.blocks = 4
    assert inner.blocks == 4


@pytest.mark.parametrize("name", HANDLERS)
def test_layer_has_the_handlers_of_the_inner_device(name: Operation) -> None:
    assert can(Layer(Everything()), name)
    assert can(Layer(OnlyReads()), name) == (name == "read")
    assert can(Layer(MemoryDevice(1 << 20)), name) == (name not in ("flush", "cache"))


def test_layer_has_no_handler_that_the_inner_device_lacks() -> None:
    assert not can(Twice(OnlyReads()), "write")
    assert not can(Twice(OnlyReads()), "flush")
    assert can(Twice(Everything()), "write")
    assert can(Promises(OnlyReads()), "flush")


async def test_zeroes_are_written_by_the_layer_if_the_inner_device_only_writes() -> None:
    class Written(Everything):
        write_zeroes = BlockDevice.write_zeroes

    inner = Written()
    await Twice(inner).write_zeroes(0, 512, may_trim=True)
    assert inner.calls == [("write", 0, bytes(512))] * 2


def test_read_only_follows_the_inner_device_unless_it_is_set() -> None:
    inner = Everything()
    layer = Layer(inner)
    assert not layer.read_only
    inner.read_only = True
    assert layer.read_only
    inner.read_only = False
    layer.read_only = True
    assert layer.read_only
    assert Layer(OnlyReads()).read_only


async def test_write_to_an_inner_device_without_one_is_refused() -> None:
    with pytest.raises(PermissionError) as caught:
        await Twice(OnlyReads()).write(0, memoryview(bytes(512)))
    assert caught.value.errno == errno.EPERM
