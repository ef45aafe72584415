"""What a device can do is answered in one place: by its handlers, and by what it depends on."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from aiovblk import BlockDevice, Extent
from aiovblk.contract import check_handlers
from aiovblk.device import OPERATIONS, Operation, can, handler_for, missing_operations
from aiovblk.dispatch import transmission_flags
from aiovblk.dispatch.handler_call import HandlerAdapter
from aiovblk.dispatch.validation import kernel_negotiation
from aiovblk.protocol import Command, Request, TransmissionFlag
from aiovblk.storage import Cache, Layer, MemoryDevice, Mirror
from aiovblk.storage.intercept import Intercept
from aiovblk.unaligned import UnalignedAdapter

from ..support.recording_device import Recorder

T = TypeVar("T")

OPTIONAL = sorted(OPERATIONS - {"read"})


class OnlyReads(BlockDevice):
    blocks = 4

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


class ReadsAndWrites(OnlyReads):
    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []

    async def write(self, offset: int, data: memoryview) -> None:
        self.written.append((offset, bytes(data)))


class Everything(Layer):
    """A layer that overrides all handlers, and remembers which were called."""

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self.calls: list[str] = []

    async def write(self, offset: int, data: memoryview) -> None:
        self.calls.append("write")
        await self.inner.write(offset, data)

    async def flush(self) -> None:
        self.calls.append("flush")

    async def trim(self, offset: int, length: int) -> None:
        self.calls.append("trim")

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        self.calls.append("write_zeroes")

    async def extents(self, offset: int, length: int) -> list[Extent]:
        self.calls.append("extents")
        return [Extent(length, hole=True)]

    async def cache(self, offset: int, length: int) -> None:
        self.calls.append("cache")


class Flushes(Everything):
    provides = frozenset({"flush"})


class Recording(Intercept):
    """Remembers the requests that it was given."""

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self.commands: list[str] = []

    async def intercept(
        self, command: str, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> T:
        self.commands.append(command)
        return await call()


def test_device_can_do_what_it_overrides() -> None:
    assert missing_operations(BlockDevice()) == OPERATIONS
    assert missing_operations(OnlyReads()) == OPERATIONS - {"read"}
    assert missing_operations(Recorder()) == frozenset()


def test_handler_that_is_set_on_the_instance_counts() -> None:
    device = OnlyReads()

    async def flush() -> None: ...

    device.flush = flush  # type: ignore[method-assign]  # as a mock does
    assert can(device, "flush")
    device.flush = BlockDevice.flush.__get__(device)  # type: ignore[method-assign]  # see above
    assert not can(device, "flush")


@pytest.mark.parametrize("operation", OPTIONAL)
def test_layer_is_narrowed_to_its_inner_device(operation: Operation) -> None:
    assert not can(Everything(OnlyReads()), operation)
    assert not can(Layer(Everything(OnlyReads())), operation)
    assert can(Layer(Recorder()), operation)
    assert can(Layer(Flushes(OnlyReads())), operation) == (operation == "flush")


@pytest.mark.parametrize("operation", OPTIONAL)
def test_unaligned_adapter_can_do_what_its_device_can(operation: Operation) -> None:
    assert can(UnalignedAdapter(OnlyReads()), operation) == (operation == "write_zeroes")
    assert can(UnalignedAdapter(Recorder()), operation)


def test_flags_do_not_advertise_what_the_inner_device_lacks() -> None:
    assert transmission_flags(Everything(ReadsAndWrites())) == TransmissionFlag.HAS_FLAGS
    assert TransmissionFlag.SEND_FLUSH in transmission_flags(Flushes(ReadsAndWrites()))
    assert TransmissionFlag.READ_ONLY in transmission_flags(Everything(OnlyReads()))


@pytest.mark.parametrize("command", [Command.FLUSH, Command.TRIM, Command.CACHE])
async def test_hints_and_flushes_that_nothing_below_takes_reach_no_handler(
    command: Command,
) -> None:
    device = Everything(ReadsAndWrites())
    adapter = HandlerAdapter(device, kernel_negotiation(device), None)
    assert await adapter.handle(Request(0, command, 1, 0, 4096), None) == b""
    assert device.calls == []


async def test_zeroes_are_written_by_way_of_the_layer_if_the_inner_device_only_writes() -> None:
    inner = ReadsAndWrites()
    device = Everything(inner)
    adapter = HandlerAdapter(device, kernel_negotiation(device), None)
    await adapter.handle(Request(0, Command.WRITE_ZEROES, 1, 4096, 8192), None)
    assert device.calls == ["write"]
    assert inner.written == [(4096, bytes(8192))]


async def test_default_handlers_are_those_of_the_base_class() -> None:
    device = Everything(OnlyReads())
    assert await handler_for(device, "extents")(0, 4096) == [Extent(4096)]
    with pytest.raises(PermissionError) as caught:
        await handler_for(device, "write")(0, memoryview(bytes(4096)))
    assert caught.value.errno == errno.EPERM
    assert device.calls == []


async def test_interceptor_sees_no_request_that_the_inner_device_cannot_do() -> None:
    device = Recording(ReadsAndWrites())
    await device.flush()
    await device.trim(0, 4096)
    await device.cache(0, 4096)
    assert await device.extents(0, 4096) == [Extent(4096)]
    assert device.commands == []
    await device.write_zeroes(0, 4096, may_trim=True)
    assert device.commands == ["write"]


def test_handler_that_is_never_called_is_not_checked() -> None:
    class Wrong(Layer):
        def trim(self) -> None: ...  # type: ignore[override]  # that is the point

    check_handlers(Wrong(OnlyReads()))
    with pytest.raises(TypeError, match=r"Wrong\.trim must be async def"):
        check_handlers(Wrong(MemoryDevice(4096)))


def test_no_device_replaces_its_own_methods() -> None:
    for device in (Layer(OnlyReads()), Recording(OnlyReads()), UnalignedAdapter(OnlyReads())):
        assert not OPERATIONS & vars(device).keys()


def test_handlers_are_coroutines_of_every_operation() -> None:
    assert {"read", "write", "flush", "trim", "write_zeroes", "extents", "cache"} == OPERATIONS
    assert all(inspect.iscoroutinefunction(getattr(BlockDevice, each)) for each in OPERATIONS)


async def test_layers_that_store_refuse_writes_that_the_inner_device_cannot_take() -> None:
    cache = Cache(OnlyReads(), size=1 << 20, policy="write-back")
    second = MemoryDevice(4 * 4096)
    mirror = Mirror(OnlyReads(), second)
    for layer in (cache, mirror):
        with pytest.raises(PermissionError):
            await layer.write(0, memoryview(bytes(4096)))
        with pytest.raises(PermissionError):
            await layer.write_zeroes(0, 4096, may_trim=True)
    assert len(mirror.in_sync) == 2
    await cache.unmount()
