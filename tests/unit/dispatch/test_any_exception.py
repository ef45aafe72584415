"""Whatever a handler raises, its request gets one reply, and the limiter is released."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys

import pytest

from aiovblk import BlockDevice
from aiovblk.dispatch import ConcurrencyLimiter
from aiovblk.dispatch.outcomes import MAX_RUNS
from aiovblk.protocol import Command

from ...support.dispatch_client import PuppetDevice, served
from ...support.worker_services import Panic

READ = Command.READ

FAILURES = [
    Panic("index out of bounds"),
    BaseExceptionGroup("several", [Panic("one"), ValueError("other")]),
    GeneratorExit(),
    pytest.fail.Exception("a test has failed"),
    StopAsyncIteration(),
]


class Raising(BlockDevice):
    """A device whose first read raises; further reads succeed."""

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
async def test_base_exception_gets_one_reply_and_the_limiter_is_released(
    exc: BaseException, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = ConcurrencyLimiter(1)
    async with served(Raising(exc, waits=waits), limiter=limiter) as server:
        cookies = [server.client.send(READ, 0, 512) for _ in range(3)]
        replies = await server.client.replies(3)
        assert [replies[cookie].error for cookie in cookies] == [errno.EIO, 0, 0]
        await asyncio.sleep(0)
        assert limiter.running == 0
    (record,) = caplog.records
    assert f"READ at 0, 512 bytes, failed: {type(exc).__name__}" in record.message
    assert record.exc_info
    assert record.exc_info[1] is exc


class Awkward(OSError):  # noqa: N818 (its name is as good as any)
    """An exception whose own methods raise."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    @property
    def errno(self) -> int:  # type: ignore[override]  # that is the point
        raise RuntimeError("no number")


@pytest.mark.parametrize("exc", [Awkward(), OSError([1], "a number that is none")])
async def test_exception_whose_own_methods_raise_is_eio(exc: BaseException) -> None:
    async with served(Raising(exc, waits=True)) as server:
        assert (await server.client.call(READ, 0, 512)).error == errno.EIO
        assert (await server.client.call(READ, 0, 512)).error == 0


async def test_logging_that_raises_does_not_prevent_the_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
def test_exit_and_interrupt_are_answered_and_raised_again(
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
        server.stats.in_flight -= 1  # the first is never answered
