"""Whatever a handler raises, its request gets one answer, and nobody waits for what never comes."""

from __future__ import annotations

import asyncio
import errno
import gc
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk import BlockDevice, Error
from aiovblk.aio.coalesce import CoalescedCall
from aiovblk.dispatch import ConcurrencyLimiter, HandlerLimits
from aiovblk.dispatch.scheduler import MAX_RUNS
from aiovblk.mounting.handover.release import HandoverRelease
from aiovblk.mounting.workers.service import ConnectionService
from aiovblk.protocol import Command
from aiovblk.storage import Cache, MemoryDevice, Mirror, Retry
from aiovblk.testing import CheckFailed, check_block_device
from aiovblk.workers import Worker

from ...support.dispatch_client import PuppetDevice, served
from ...support.worker_services import Panic, Panicking

READ, WRITE, FLUSH = Command.READ, Command.WRITE, Command.FLUSH

FAILURES = [
    Panic("index out of bounds"),
    BaseExceptionGroup("several", [Panic("one"), ValueError("other")]),
    GeneratorExit(),
    pytest.fail.Exception("a test has failed"),
    StopAsyncIteration(),
]


class Raising(BlockDevice):
    """Its first read raises; the others are as they should be."""

    block_size, blocks = 512, 8

    def __init__(self, exc: BaseException, *, waits: bool) -> None:
        self.left = [exc]
        self.waits = waits

    async def read(self, offset: int, length: int) -> bytes:
        if self.waits:
            await asyncio.sleep(0)
        if self.left:
            raise self.left.pop()
        return bytes(length)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("exc", FAILURES, ids=lambda exc: type(exc).__name__)
async def test_what_is_no_exception_is_one_answer_and_its_turn_is_free(
    exc: BaseException, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    turns = ConcurrencyLimiter(1)
    async with served(Raising(exc, waits=waits), limiter=turns) as server:
        cookies = [server.client.send(READ, 0, 512) for _ in range(3)]
        replies = await server.client.replies(3)
        assert [replies[cookie].error for cookie in cookies] == [errno.EIO, 0, 0]
        await asyncio.sleep(0)
        assert turns.running == 0
    (record,) = caplog.records
    assert f"READ at 0, 512 bytes, failed: {type(exc).__name__}" in record.message
    assert record.exc_info
    assert record.exc_info[1] is exc


class Awkward(OSError):  # noqa: N818 (its name is as good as any)
    """Its own methods raise."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    @property
    def errno(self) -> int:  # type: ignore[override]  # it is what is tried
        raise RuntimeError("no number")


@pytest.mark.parametrize("exc", [Awkward(), OSError([1], "a number that is none")])
async def test_exception_that_cannot_even_be_told_is_eio(exc: BaseException) -> None:
    async with served(Raising(exc, waits=True)) as server:
        assert (await server.client.call(READ, 0, 512)).error == errno.EIO
        assert (await server.client.call(READ, 0, 512)).error == 0


async def test_log_that_raises_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: object, **__: object) -> None:
        raise OSError("the disk of the log is full")

    monkeypatch.setattr("aiovblk.dispatch.failures.logger.error", raising)
    monkeypatch.setattr("aiovblk.dispatch.failures.logger.warning", raising)
    for exc in (Panic("a bug"), OSError(errno.EIO, "an outage")):
        async with served(Raising(exc, waits=True), limiter=ConcurrencyLimiter(1)) as server:
            assert (await server.client.call(READ, 0, 512)).error == errno.EIO
            assert (await server.client.call(READ, 0, 512)).error == 0


_INTERRUPTED = """
import asyncio, socket, sys
from aiovblk import BlockDevice
from aiovblk.dispatch import Dispatcher, Stats
from aiovblk.protocol import Command, Request, serialize_request

class Device(BlockDevice):
    block_size, blocks = 512, 8

    async def read(self, offset, length):
        if sys.argv[2] == "waits":
            await asyncio.sleep(0)
        raise {
            "exit": SystemExit(7),
            "interrupt": KeyboardInterrupt(),
            "group": BaseExceptionGroup("", [ValueError(), KeyboardInterrupt()]),
        }[sys.argv[1]]

ours, theirs = socket.socketpair()
loop = asyncio.new_event_loop()

async def serve():
    dispatcher = Dispatcher(Device(), Stats(), on_disconnect=lambda: None)
    await dispatcher.connect(ours)
    return dispatcher

dispatcher = loop.run_until_complete(serve())
theirs.sendall(serialize_request(Request(0, Command.READ, 0x1234, 0, 512)))
running = loop.create_task(dispatcher.run())
try:
    loop.run_until_complete(running)
except BaseException as exc:
    print(type(exc).__name__)
loop.run_until_complete(dispatcher.drained())
theirs.setblocking(False)
print(theirs.recv(100).hex(), dispatcher.stats.errors)
running.done() and running.exception()
"""


@pytest.mark.parametrize("waits", ["waits", "at once"])
@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        ("exit", "SystemExit"),
        ("interrupt", "KeyboardInterrupt"),
        ("group", "KeyboardInterrupt"),
    ],
)
def test_what_ends_the_program_is_answered_and_raised_on(
    raised: str, seen: str, waits: str
) -> None:
    command = [sys.executable, "-c", _INTERRUPTED, raised, waits]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    reply = "67446698" + f"{errno.EIO:08x}" + f"{0x1234:016x}"
    assert done.stdout.split() == [seen, reply, "1"], done.stderr


# Handlers that cancel their own task


class CancelsItself(BlockDevice):
    block_size, blocks = 512, 8

    def __init__(self, *, waits: bool) -> None:
        self.runs = 0
        self.waits = waits

    async def read(self, offset: int, length: int) -> bytes:
        if offset:
            return bytes(length)
        self.runs += 1
        if self.waits:
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.get_running_loop().create_future()
        raise AssertionError("it was cancelled")


@pytest.mark.parametrize("waits", [False, True])
async def test_handler_that_cancels_its_own_task_is_one_clear_error(
    waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    device = CancelsItself(waits=waits)
    async with served(device, limiter=ConcurrencyLimiter(1)) as server:
        cookies = [server.client.send(READ, offset, 512) for offset in (0, 512)]
        replies = await server.client.replies(2)
        assert [replies[cookie].error for cookie in cookies] == [errno.EIO, 0]
    assert device.runs == MAX_RUNS
    (record,) = caplog.records
    assert "as if it cancelled its own task" in record.message


async def test_task_whose_loop_is_gone_ends_without_an_answer() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(READ, 0, 512)
        call = await device.calls.get()
        assert call.task is not None
        coroutine = call.task.get_coro()
        assert coroutine is not None
        coroutine.close()  # as the end of the interpreter does
        assert server.stats.errors == 0
        call.task.cancel()
        server.client.send(READ, 0, 512)
        (await device.calls.get()).succeed(bytes(512))
        assert (await server.client.reply()).error == 0
        server.stats.in_flight -= 1  # nobody is left to answer the first


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
async def test_panic_at_the_end_of_a_server_is_told_and_all_are_unmounted(
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


async def test_panic_of_what_makes_the_device_refuses_the_client(
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
async def test_panic_while_a_device_is_left_does_not_end_what_serves(handler: str) -> None:
    class Lines:
        resumed = 0

        async def pause(self) -> None: ...

        def resume(self) -> None:
            self.resumed += 1

        def detach(self) -> list[Any]:
            return []

    class Link:
        path = "/dev/nbd7"
        left = False

        def detach(self) -> None:
            self.left = True

    lines, link = Lines(), Link()
    leaving = HandoverRelease(PanicsAtTheEnd(handler), lines, link, 5)  # type: ignore[arg-type]
    if handler == "flush":
        with pytest.raises(Error, match=r"flush\(\) failed: Panic"):
            await leaving.run(None)
        assert (lines.resumed, link.left) == (1, False)
    else:
        await leaving.run(None)
        assert (lines.resumed, link.left) == (0, True)


async def test_panic_in_a_worker_that_is_left_alone_still_unmounts() -> None:
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


async def test_readers_of_a_cache_are_all_told_of_a_panic_and_the_next_may_read() -> None:
    cache = Cache(PanicsBelow("read"), size=1 << 20)
    reads = [asyncio.ensure_future(cache.read(0, 4096)) for _ in range(3)]
    outcomes = await asyncio.gather(*reads, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Panic] * 3
    assert bytes(await cache.read(0, 4096)) == bytes(4096)
    await cache.unmount()
    gc.collect()  # an exception that nobody has looked at would be told of here


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


async def test_run_for_many_that_panics_tells_all_of_them_or_the_next() -> None:
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
        monkeypatch.setattr("aiovblk.client.connection.parse_reply_header", broken)
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
        await lost_for_good(remote)


# The test kit


async def test_check_of_a_device_that_panics_tells_which_request_it_was() -> None:
    def make() -> BlockDevice:
        return PanicsBelow("write")

    with pytest.raises(CheckFailed, match=r"raised Panic\('write'\)"):
        await check_block_device(make)
