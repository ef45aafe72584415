"""Panics (exceptions that are no Exception) in all rooms: each is reported, and no task hangs.

What the dispatcher does with them is in dispatch/test_any_exception.py.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import aiovblk
from aiovblk import BlockDevice, Error
from aiovblk.aio.coalesce import CoalescedCall
from aiovblk.dispatch import ConcurrencyLimiter, HandlerLimits
from aiovblk.mounting.connections import ConnectionGroup
from aiovblk.mounting.handover.release import HandoverRelease
from aiovblk.mounting.state import MountState
from aiovblk.mounting.workers.service import ConnectionService
from aiovblk.protocol import Command
from aiovblk.storage import Cache, MemoryDevice, Mirror, Retry
from aiovblk.testing import CheckFailed, check_block_device
from aiovblk.workers import Worker

from ..support.dispatch_client import served
from ..support.polling import until
from ..support.worker_services import Panic, Panicking

READ, WRITE, FLUSH = Command.READ, Command.WRITE, Command.FLUSH

# flush() and unmount() at the end


class PanicsAtTheEnd(MemoryDevice):
    def __init__(self, handler: str) -> None:
        super().__init__(1 << 20)
        self.handler = handler
        self.unmounted = False

    async def flush(self) -> None:
        if self.handler == "flush":
            raise Panic("flushing")

    async def unmount(self) -> None:
        self.unmounted = True
        if self.handler == "unmount":
            raise Panic("unmounting")


@pytest.mark.parametrize("handler", ["flush", "unmount"])
async def test_panic_at_the_end_of_a_server_is_reported_and_all_are_unmounted(
    path: Path, handler: str, caplog: pytest.LogCaptureFixture
) -> None:
    devices = {"a": PanicsAtTheEnd(handler), "b": PanicsAtTheEnd("")}
    with pytest.raises(Error, match=rf"'a'.*PanicsAtTheEnd\.{handler}\(\) failed: Panic: "):
        async with aiovblk.serve(devices, unix=path):
            pass
    assert all(device.unmounted for device in devices.values())
    assert f"export 'a' (PanicsAtTheEnd): PanicsAtTheEnd.{handler}() failed" in caplog.text


@pytest.mark.parametrize("handler", ["flush", "unmount"])
async def test_panic_of_a_clients_own_device_is_no_bug_of_the_server(
    path: Path, handler: str, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[PanicsAtTheEnd] = []

    def make() -> BlockDevice:
        made.append(PanicsAtTheEnd(handler))
        return made[-1]

    async with aiovblk.serve(make, unix=path) as server, aiovblk.connect(server.uris[0]):
        pass
    assert [device.unmounted for device in made] == [True]
    assert "a bug in aiovblk" not in caplog.text


async def test_panic_of_a_device_factory_refuses_the_client(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> BlockDevice:
        raise Panic("nothing is made")

    async with aiovblk.serve(make, unix=path) as server:
        with pytest.raises(Error):
            async with aiovblk.connect(server.uris[0]):
                pass
    assert "export '': opening it failed: Panic: nothing is made" in caplog.text
    assert "the handshake failed" not in caplog.text


@pytest.mark.parametrize("handler", ["flush", "unmount"])
async def test_panic_during_a_handover_does_not_end_the_server(handler: str) -> None:
    class Link:
        path = "/dev/nbd7"
        left = False

        def detach(self) -> None:
            self.left = True

    group, link = ConnectionGroup(MountState()), Link()
    leaving = HandoverRelease(PanicsAtTheEnd(handler), group, link, 5)  # type: ignore[arg-type]
    if handler == "flush":
        with pytest.raises(Error, match=r"flush\(\) failed: Panic"):
            await leaving.run(None)
        assert (group.paused, link.left) == (False, False)
    else:
        await leaving.run(None)
        assert (group.paused, link.left) == (True, True)


async def test_panic_in_a_worker_without_parent_still_unmounts() -> None:
    device = PanicsAtTheEnd("flush")
    limits = HandlerLimits(concurrency=1, handler_timeout=None, slow_request=None)
    service = ConnectionService(lambda: device, limits, False, False, lambda *_: None)
    await service.open()
    await service.shutdown()
    assert device.unmounted


@pytest.mark.parametrize("how", ["panic", "generator exit"])
async def test_panic_in_a_worker_answers_its_parent(how: str) -> None:
    worker = Worker(lambda *_: None)
    await worker.start(Panicking)
    with pytest.raises(RuntimeError, match=r"Panic|GeneratorExit"):
        await worker.call("fail", how)
    assert await worker.call("add", 1, 2) == 3
    await worker.stop()


# Layers and what they do in the background


class PanicsBelow(MemoryDevice):
    """Panics at the next call of one handler."""

    def __init__(self, handler: str, exc: BaseException | None = None) -> None:
        super().__init__(1 << 20)
        self.fail: dict[str, list[BaseException]] = {handler: [exc or Panic(handler)]}

    def _raise_if_due(self, handler: str) -> None:
        if left := self.fail.get(handler):
            raise left.pop()

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        await asyncio.sleep(0)
        self._raise_if_due("read")
        return await super().read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        self._raise_if_due("write")
        await super().write(offset, data)

    async def flush(self) -> None:
        await asyncio.sleep(0)
        self._raise_if_due("flush")
        await super().flush()


async def test_panic_below_a_cache_fails_all_its_readers_and_the_next_may_read() -> None:
    cache = Cache(PanicsBelow("read"), size=1 << 20)
    reads = [asyncio.ensure_future(cache.read(0, 4096)) for _ in range(3)]
    outcomes = await asyncio.gather(*reads, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Panic] * 3
    assert bytes(await cache.read(0, 4096)) == bytes(4096)
    await cache.unmount()
    gc.collect()  # an exception that was never retrieved would be reported here


@pytest.mark.parametrize("exc", [Panic("write"), asyncio.CancelledError()])
async def test_write_back_that_panics_fails_the_flush_and_stays_dirty(exc: BaseException) -> None:
    inner = PanicsBelow("write", exc)
    cache = Cache(inner, size=1 << 20, policy="write-back")
    await cache.write(0, memoryview(b"d" * 4096))
    with pytest.raises((Panic, OSError)):
        await cache.flush()
    await cache.flush()
    assert bytes(await inner.read(0, 4096)) == b"d" * 4096
    await cache.unmount()


async def test_coalesced_call_that_panics_fails_all_callers_or_the_next() -> None:
    panics = [Panic("one"), Panic("two")]
    began = asyncio.Event()

    async def operation() -> None:
        began.set()
        await asyncio.sleep(0)
        if panics:
            raise panics.pop(0)

    grouped = CoalescedCall(operation)
    outcomes = await asyncio.gather(grouped(), grouped(), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["one", "one"]
    began.clear()
    caller = asyncio.ensure_future(grouped())
    await began.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    with pytest.raises(Panic, match="two"):
        await grouped()
    await grouped()


@pytest.mark.parametrize(
    "make",
    [
        lambda below: Cache(below, size=1 << 20),
        lambda below: Mirror(MemoryDevice(1 << 20), below),
        lambda below: Retry(below, delay=0),
    ],
)
async def test_panic_below_a_layer_is_answered(
    make: Callable[[BlockDevice], BlockDevice], caplog: pytest.LogCaptureFixture
) -> None:
    for handler in ("read", "write", "flush"):
        layer = make(PanicsBelow(handler))
        async with served(layer, limiter=ConcurrencyLimiter(1)) as server:
            for _ in range(2):
                await server.client.call(READ, 0, 4096)
                await server.client.call(WRITE, 0, data=bytes(4096))
                await server.client.call(FLUSH)
            assert (await server.client.call(READ, 0, 4096)).error == 0
        await layer.unmount()


# The client's own tasks


async def lost_for_good(remote: aiovblk.RemoteDevice) -> None:
    with pytest.raises(OSError, match="was lost"):
        await asyncio.wait_for(remote.read(0, 4096), 30)


async def test_client_whose_receiver_breaks_fails_its_requests(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise Panic("receiving")

    async with (
        aiovblk.serve(MemoryDevice(1 << 20), unix=path) as server,
        aiovblk.connect(server.uris[0], connections=1) as remote,
    ):
        await remote.read(0, 4096)
        monkeypatch.setattr("aiovblk.client.receiving.ReplyReceiver.take", broken)
        await lost_for_good(remote)
        await lost_for_good(remote)
    assert "a bug in aiovblk" in caplog.text


async def test_client_that_cannot_even_try_to_reconnect_fails_its_requests(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Awaitable[None]:
        raise Panic("dialing")

    async with (
        aiovblk.serve(MemoryDevice(1 << 20), unix=path) as server,
        aiovblk.connect(server.uris[0], connections=1, reconnect=30) as remote,
    ):
        await remote.read(0, 4096)
        monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", broken)
        server.connections[0].stop()
        await until(lambda: not remote.connections)  # the server may still answer what it received
        await lost_for_good(remote)


# The test kit


async def test_check_of_a_device_that_panics_names_the_request() -> None:
    def make() -> BlockDevice:
        return PanicsBelow("write")

    with pytest.raises(CheckFailed, match=r"raised Panic\('write'\)"):
        await check_block_device(make)
