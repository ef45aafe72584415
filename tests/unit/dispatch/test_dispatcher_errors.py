"""What becomes of an exception, a wrong result and a late one."""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import replace
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.dispatch import Stats
from aiovblk.protocol import Command, CommandFlag
from tests.support.timers import LATER, Timers

from ...support.dispatch_client import PuppetDevice, served

READ, WRITE, FLUSH = Command.READ, Command.WRITE, Command.FLUSH
TRIM, WRITE_ZEROES = Command.TRIM, Command.WRITE_ZEROES


class ReadReturns(BlockDevice):
    """Its first read returns this; the others are as they should be."""

    block_size, blocks = 512, 8

    def __init__(self, result: object) -> None:
        self.results = [result]

    async def read(self, offset: int, length: int) -> Any:
        return self.results.pop() if self.results else b"\x11" * length


@pytest.mark.parametrize(
    ("exc", "error"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (PermissionError(errno.EACCES, "no"), errno.EPERM),
        (ConnectionRefusedError(errno.ECONNREFUSED, "no"), errno.EIO),
        (OSError("no number"), errno.EIO),
        (TimeoutError(), errno.EIO),
    ],
)
async def test_os_error_is_the_reply_and_no_bug(
    exc: OSError, error: int, caplog: pytest.LogCaptureFixture
) -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(WRITE, 0, data=bytes(512))
        (await device.calls.get()).fail(exc)
        assert (await server.client.reply()).error == error
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)


@pytest.mark.parametrize(
    "exc", [ValueError("oops"), EOFError("oops"), ExceptionGroup("oops", [ValueError()])]
)
async def test_other_exception_is_eio_and_logged_with_its_traceback(
    exc: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(READ, 1024, 512)
        (await device.calls.get()).fail(exc)
        assert (await server.client.reply()).error == errno.EIO
        server.client.send(READ, 1024, 512)
        (await device.calls.get()).succeed()
        assert (await server.client.reply()).error == 0
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("aiovblk", logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[1] is exc
    assert "READ at 1024, 512 bytes" in record.getMessage()
    assert "in _wait" in caplog.text  # the handler's own line


async def test_error_number_that_is_no_int_is_answered_all_the_same() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(READ, 0, 512)
        (await device.calls.get()).fail(OSError(5.0, "made by a division"))
        assert (await server.client.reply()).error == errno.EIO


@pytest.mark.parametrize("command", [READ, WRITE])
async def test_default_handler_replies_eperm(command: Command) -> None:
    device = BlockDevice()
    device.blocks = 1
    device.read_only = False
    async with served(device) as server:
        data = bytes(4096) if command == WRITE else b""
        assert (await server.client.call(command, 0, 4096, data)).error == errno.EPERM


@pytest.mark.parametrize(
    "result",
    [
        b"",
        b"x" * 511,
        b"x" * 513,
        bytearray(0),
        memoryview(b"x" * 1024)[::2],
        memoryview(bytes(512)).cast("I")[:64],
        None,
        "x" * 512,
    ],
)
async def test_wrong_result_of_a_read_is_eio_and_logged(
    result: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(ReadReturns(result)) as server:
        assert (await server.client.call(READ, 0, 512)).error == errno.EIO
        assert await server.client.read(0, 512) == b"\x11" * 512
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError | TypeError)


async def test_wrong_length_is_logged_with_both_lengths(caplog: pytest.LogCaptureFixture) -> None:
    async with served(ReadReturns(b"short")) as server:
        assert (await server.client.call(READ, 0, 512)).error == errno.EIO
    assert "ValueError: read returned 5 bytes where 512 were asked for" in caplog.text


@pytest.mark.parametrize(("result", "shown"), [(None, "None"), ("x" * 512, "a str")])
async def test_result_that_is_no_bytes_is_named_in_the_log(
    result: object, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(ReadReturns(result)) as server:
        assert (await server.client.call(READ, 0, 512)).error == errno.EIO
    assert f"TypeError: read returned {shown} where bytes were asked for" in caplog.text


async def test_handler_that_raises_cancelled_error_is_eio_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(READ, 0, 512)
        (await device.calls.get()).fail(asyncio.CancelledError())
        assert (await server.client.reply()).error == errno.EIO
        assert device.calls.empty()
    assert "raised CancelledError" in caplog.text


async def test_handler_that_awaits_a_cancelled_task_is_eio(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Device(BlockDevice):
        blocks = 1

        async def read(self, offset: int, length: int) -> bytes:
            other = asyncio.create_task(asyncio.sleep(0))
            other.cancel()
            await other
            return bytes(length)

    async with served(Device()) as server:
        assert (await server.client.call(READ, 0, 4096)).error == errno.EIO
    assert "raised CancelledError" in caplog.text


async def test_handler_timeout_cancels_the_handler_and_replies_eio(
    timers: Timers, caplog: pytest.LogCaptureFixture
) -> None:
    device = PuppetDevice()
    async with served(device, handler_timeout=LATER) as server:
        server.client.send(TRIM, 512, 1024)
        call = await device.calls.get()
        timers.go_off()
        assert (await server.client.reply()).error == errno.EIO
        assert call.result.cancelled()
        server.client.send(READ, 0, 512)
        (await device.calls.get()).succeed(b"y" * 512)
        assert (await server.client.reply()).data == b"y" * 512
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "PuppetDevice: TRIM at 512, 1024 bytes, failed: not done in 3600 s (handler_timeout)"
    )


async def test_handler_timeout_covers_the_flush_of_fua(
    timers: Timers, caplog: pytest.LogCaptureFixture
) -> None:
    device = PuppetDevice()
    async with served(device, handler_timeout=LATER) as server:
        server.client.send(WRITE, 0, data=bytes(512), flags=CommandFlag.FUA)
        (await device.calls.get()).succeed()
        assert (await device.calls.get()).name == "flush"
        timers.go_off()
        assert (await server.client.reply()).error == errno.EIO
    assert "not done in 3600 s" in caplog.text


async def test_handler_timeout_does_not_count_while_a_request_waits_its_turn() -> None:
    class Device(BlockDevice):
        block_size, blocks = 512, 8

        async def read(self, offset: int, length: int) -> bytes:
            if offset == 0:
                await asyncio.get_running_loop().create_future()
            return bytes(length)

    async with served(Device(), concurrency=1, handler_timeout=0.05) as server:
        for offset in (0, 512):
            server.client.send(READ, offset, 512)
        assert (await server.client.reply()).error == errno.EIO
        assert (await server.client.reply()).error == 0


async def test_timeout_error_of_the_handler_itself_is_not_taken_for_the_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = PuppetDevice()
    async with served(device, handler_timeout=15) as server:
        server.client.send(READ, 0, 512)
        (await device.calls.get()).fail(TimeoutError(errno.ETIMEDOUT, "the store did not answer"))
        assert (await server.client.reply()).error == errno.EIO
    assert "TimeoutError: [Errno 110] the store did not answer" in caplog.text
    assert "not done in" not in caplog.text


async def test_stats_count_what_was_done_and_what_failed() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        requests = [(READ, 512), (WRITE, 1024), (FLUSH, 0), (TRIM, 2048), (WRITE_ZEROES, 4096)]
        for command, length in requests:
            data = bytes(length) if command == WRITE else b""
            server.client.send(command, 0, length, data)
        calls = [await device.calls.get() for _ in requests]
        assert counted(server.stats) == Stats(in_flight=5, max_in_flight=5)
        for call in calls:
            call.succeed()
        await server.client.replies(5)
        done = Stats(
            reads=1,
            writes=1,
            flushes=1,
            trims=1,
            write_zeroes=1,
            bytes_read=512,
            bytes_written=1024,
            max_in_flight=5,
        )
        assert counted(server.stats) == done
        await server.client.call(99)
        server.client.send(READ, 0, 512)
        (await device.calls.get()).fail(OSError(errno.EIO, "broken"))
        await server.client.reply()
        done.errors_by_command = {"unknown": 1, "read": 1}
        assert counted(server.stats) == done
        assert server.stats.errors == 2
        counts = {name: latency.count for name, latency in server.stats.latency.items()}
        assert counts == {
            "read": 2,
            "write": 1,
            "flush": 1,
            "trim": 1,
            "write_zeroes": 1,
            "cache": 0,
            "block_status": 0,
            "unknown": 1,
        }


def counted(stats: Stats) -> Stats:
    """The counters without what the clock says."""
    return replace(stats, latency=Stats().latency)
