"""What cannot be served is refused before it is, by the name of its class and method."""

from __future__ import annotations

import asyncio
import functools
import os
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

import aiovblk
from aiovblk import BlockDevice
from aiovblk.contract import check_device, check_handlers
from aiovblk.dispatch import HandlerLimits
from aiovblk.mounting.backend import LocalBackend
from aiovblk.protocol import Command
from aiovblk.server import Export
from aiovblk.storage import Cache, MemoryDevice, Mirror, Overlay, ReadOnly, Shared
from aiovblk.testing import CheckFailed, check_block_device

from ..support.dispatch_client import served
from ..support.worker_services import PlainDisk

pytestmark = pytest.mark.one_loop


class Good(BlockDevice):
    blocks = 8

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


def device(**handlers: Any) -> BlockDevice:
    """A device of a class called Sync with these handlers."""
    return type("Sync", (Good,), handlers)()  # type: ignore[no-any-return]


# What is told from a plain def: what it is sure to return


def plain_read(self, offset, length):  # type: ignore[no-untyped-def]
    return bytes(length)


def slicing_read(self, offset, length):  # type: ignore[no-untyped-def]
    if length > 4096:
        return self.large[offset : offset + length]
    return b"\0" * length if offset else bytearray(length)


def pread(self, offset, length):  # type: ignore[no-untyped-def]
    return os.pread(self.file, length, offset)


def typed_read(self: Any, offset: int, length: int) -> bytes:
    return self.file.read(length)  # type: ignore[no-any-return]


def write_without_result(self, offset, data):  # type: ignore[no-untyped-def]
    self.file.write(data)


def flush_nothing(self):  # type: ignore[no-untyped-def]
    pass


@pytest.mark.parametrize(
    ("name", "handler"),
    [
        ("read", plain_read),
        ("read", slicing_read),
        ("read", pread),
        ("read", typed_read),
        ("read", functools.partialmethod(plain_read)),
        ("write", write_without_result),
        ("flush", flush_nothing),
        ("unmount", flush_nothing),
    ],
)
def test_plain_def_that_is_sure_to_return_no_awaitable_is_refused(name: str, handler: Any) -> None:
    with pytest.raises(TypeError, match=rf"Sync\.{name} must be async def {name}\(.*plain def"):
        check_device(device(**{name: handler}))


# What a plain def may be


async def real_read(self: Any, offset: int, length: int) -> bytes:
    return bytes(length)


def delegating_read(self, offset, length):  # type: ignore[no-untyped-def]
    return self.inner.read(offset, length)


def future_read(self, offset, length):  # type: ignore[no-untyped-def]
    future = asyncio.get_running_loop().create_future()
    future.set_result(bytes(length))
    return future


def typed_wrapper(self: Any, offset: int, length: int) -> Awaitable[bytes]:
    return real_read(self, offset, length)


def in_thread(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """What a decorator does that makes a handler of a function which blocks."""

    @functools.wraps(function)
    def call(*args: Any) -> Awaitable[Any]:
        return asyncio.to_thread(function, *args)

    return call


def with_connection(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that gives one argument more than it gets."""

    @functools.wraps(function)
    async def call(self: Any, *args: Any) -> Any:
        return await function(self, "connection", *args)

    return call


@in_thread
def blocking_read(self: Any, offset: int, length: int) -> bytes:
    return bytes(length)


@with_connection
async def read_by_connection(self: Any, connection: str, offset: int, length: int) -> bytes:
    return bytes(length)


@types.coroutine
def coroutine_of_old(self: Any, offset: int, length: int) -> Iterator[None]:
    yield


class CalledAsync:
    async def __call__(self, offset: int, length: int) -> bytes:
        return bytes(length)


@pytest.mark.parametrize(
    "handler",
    [
        real_read,
        delegating_read,
        future_read,
        typed_wrapper,
        blocking_read,
        read_by_connection,
        coroutine_of_old,
        lambda self, offset, length: self.inner.read(offset, length),
        CalledAsync(),
        AsyncMock(),
        Mock(),
        staticmethod(functools.partial(real_read, None)),
        staticmethod(CalledAsync()),
    ],
)
def test_what_returns_or_may_return_an_awaitable_is_legal(handler: Any) -> None:
    check_device(device(read=handler))


async def test_wrapper_that_returns_an_awaitable_is_served() -> None:
    async with served(device(read=blocking_read)) as server:
        assert await server.client.read(0, 4096) == bytes(4096)


# Generators, signatures, and what is no function


async def async_generator(self: Any, offset: int, length: int) -> AsyncIterator[bytes]:
    yield bytes(length)


def generator(self: Any, offset: int, length: int) -> Iterator[bytes]:
    yield bytes(length)


async def two_too_few(self: Any) -> bytes:
    return b""


async def one_too_many(self: Any, offset: int, length: int, more: int) -> bytes:
    return b""


async def zeroes_without_may_trim(self: Any, offset: int, length: int) -> None: ...


@pytest.mark.parametrize(
    ("name", "handler", "why"),
    [
        ("read", async_generator, "async generator: return the result, do not yield"),
        ("read", generator, "generator: return the result"),
        ("read", two_too_few, "cannot be called so: too many positional"),
        ("read", one_too_many, "missing a required argument: 'more'"),
        ("write_zeroes", zeroes_without_may_trim, "unexpected keyword argument 'may_trim'"),
        ("flush", 5, "it is 5, which cannot be called"),
        ("flush", None, "None, which cannot be called"),
    ],
)
def test_handler_that_cannot_be_called_is_refused(name: str, handler: Any, why: str) -> None:
    with pytest.raises(TypeError, match=rf"Sync\.{name} must be async def {name}\(self.*{why}"):
        check_device(device(**{name: handler}))


def test_handler_is_named_by_the_class_that_defines_it() -> None:
    class Base(Good):
        flush = flush_nothing

    class Derived(Base):
        pass

    with pytest.raises(TypeError, match=r"Base\.flush must be"):
        check_device(Derived())


def test_handler_of_the_instance_is_looked_at_too() -> None:
    good = Good()
    good.flush = functools.partial(flush_nothing, good)  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"Good\.flush must be async def"):
        check_device(good)


# Wherever a device is given


async def coroutine() -> BlockDevice:
    return Good()


def make() -> BlockDevice:
    return Good()


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: Good, r"make an instance of it: Good\(\.\.\.\)"),
    (lambda: make, "call it"),
    (lambda: "disk", "not 'disk'|got 'disk'"),
    (lambda: PlainDisk(), r"PlainDisk\.read must be async def"),
]


@pytest.mark.parametrize(("wrong", "why"), WRONG)
def test_layer_over_what_is_no_device_is_refused(wrong: Callable[[], Any], why: str) -> None:
    good = MemoryDevice(1 << 20)
    layers: list[Callable[[Any], object]] = [
        ReadOnly,
        Shared,
        lambda inner: Cache(inner, size=1 << 20),
        lambda inner: Cache(good, inner, size=1 << 16),
        lambda inner: Mirror(good, inner),
        lambda inner: Mirror(inner, good),
        Overlay.diff_size,
    ]
    for layer in layers:
        with pytest.raises(TypeError, match=why):
            layer(wrong())


@pytest.mark.parametrize(("wrong", "why"), WRONG)
async def test_overlay_over_what_is_no_device_is_refused(
    wrong: Callable[[], Any], why: str
) -> None:
    good = MemoryDevice(1 << 20)
    for base, diff in ((wrong(), good), (good, wrong())):
        with pytest.raises(TypeError, match=why):
            await Overlay.create(base, diff)
        with pytest.raises(TypeError, match=why):
            await Overlay.open(base, diff)


def test_coroutine_in_place_of_a_device_is_to_be_awaited() -> None:
    unawaited: Coroutine[Any, Any, BlockDevice] = coroutine()
    with pytest.raises(TypeError, match="await it"):
        ReadOnly(unawaited)  # type: ignore[arg-type]  # it is what is tried
    unawaited.close()


async def test_plain_def_is_refused_when_it_is_mounted() -> None:
    limits = HandlerLimits(concurrency=1, handler_timeout=None, slow_request=None)
    with pytest.raises(TypeError, match=r"PlainDisk\.read must be async def"):
        LocalBackend(PlainDisk(), connections=1, limits=limits)
    with pytest.raises(TypeError, match=r"PlainDisk\.read must be async def"):
        await aiovblk.mount(PlainDisk())


@pytest.mark.parametrize("workers", [None, 1])
async def test_plain_def_is_refused_when_it_is_served(path: Path, workers: int | None) -> None:
    disk: Any = PlainDisk() if workers is None else PlainDisk
    with pytest.raises(TypeError, match=r"PlainDisk\.read must be async def"):
        async with aiovblk.serve({"a": disk}, unix=path, workers=workers):
            pass
    with pytest.raises(TypeError, match=r"PlainDisk\.read must be async def"):
        Export(disk)


async def test_plain_def_of_a_device_that_a_function_makes_is_told_once_and_nobody_is_served(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with aiovblk.serve({"a": lambda: PlainDisk()}, unix=path) as server:
        for _ in range(2):
            with pytest.raises((OSError, aiovblk.Error)):
                async with aiovblk.connect(server.uris[0]):
                    pass
    told = [each for each in caplog.records if "PlainDisk.read must be async def" in each.message]
    assert len(told) == 2  # at once, and how often it came again
    assert told[0].message.startswith("export 'a': opening it failed: TypeError:")


async def test_class_is_served_by_workers_and_refused_without(path: Path) -> None:
    async with (
        aiovblk.serve({"a": WorkersDisk}, unix=path, workers=1) as server,
        aiovblk.connect(server.uris[0]) as remote,
    ):
        assert bytes(await remote.read(0, 4096)) == b"w" * 4096
    with pytest.raises(TypeError, match=r"export 'a' is the class WorkersDisk: make an instance"):
        async with aiovblk.serve({"a": WorkersDisk}, unix=path):
            pass


class WorkersDisk(BlockDevice):
    blocks = 8

    async def read(self, offset: int, length: int) -> bytes:
        return b"w" * length


async def test_check_of_a_device_in_place_of_a_function_says_what_to_give() -> None:
    with pytest.raises(TypeError, match="give a function that makes it"):
        await check_block_device(Good())  # type: ignore[arg-type]  # it is what is tried


async def test_check_of_a_device_with_a_plain_def_names_it() -> None:
    with pytest.raises(CheckFailed, match=r"PlainDisk\.read must be async def"):
        await check_block_device(PlainDisk)


def test_class_is_checked_as_its_instances_would_be() -> None:
    check_handlers(Good)
    check_handlers(MemoryDevice)
    with pytest.raises(TypeError, match=r"PlainDisk\.read"):
        check_handlers(PlainDisk)


# What shows only when it is called


class Untold(BlockDevice):
    """Nobody can tell beforehand what its read returns."""

    blocks = 8
    source: Any = Mock(read=lambda length: bytes(length))

    def read(self, offset, length):  # type: ignore[no-untyped-def]
        return self.source.read(length)


@pytest.mark.parametrize("make", [Untold, lambda: ReadOnly(Untold())])
async def test_plain_def_that_shows_at_its_call_is_one_clear_error(
    make: Callable[[], BlockDevice], caplog: pytest.LogCaptureFixture
) -> None:
    async with served(make()) as server:
        for _ in range(2):
            assert (await server.client.call(Command.READ, 0, 4096)).error == 5
    first, again = caplog.records
    assert "Untold.read must be async def read(self, offset, length)" in first.message
    assert "1 more failed" in again.message
