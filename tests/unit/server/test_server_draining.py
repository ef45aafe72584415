"""Graceful shutdown: draining one client, and the whole server."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import uvloop

from aiovblk import Error
from aiovblk.server import connection as connection_module

from ...support.dispatch_client import Call
from ...support.network_client import (
    DISC,
    READ,
    WRITE,
    FailingDisk,
    LoggingDevice,
    NetworkClient,
    PuppetDisk,
    connected,
    serve,
    until_left,
    using,
)


@pytest.fixture
async def outside() -> AsyncIterator[AsyncExitStack]:
    """For clients that stay connected until after the server's block."""
    async with AsyncExitStack() as stack:
        yield stack


class StubbornDisk(PuppetDisk):
    """Its flush and unmount hang, and ignore cancellation."""

    async def flush(self) -> None:
        await super().flush()
        await asyncio.get_running_loop().create_future()

    async def unmount(self) -> None:
        await super().unmount()
        await asyncio.get_running_loop().create_future()


# All clients


async def test_requests_in_flight_are_answered_when_the_server_is_closed(
    path: Path, outside: AsyncExitStack
) -> None:
    device = PuppetDisk()
    async with serve(device, unix=path) as server:
        client = await outside.enter_async_context(using(path))
        cookies = {client.send(WRITE, 512 * at, data=bytes(512)) for at in range(3)}
        calls = [await device.calls.get() for _ in cookies]
        server.close()
        waiting = asyncio.create_task(server.wait())
        assert not waiting.done()
        for call in calls:
            call.succeed()
        replies = await client.replies(3)
        assert {cookie: reply.error for cookie, reply in replies.items()} == dict.fromkeys(
            cookies, 0
        )
        assert await client.closed() == b""
        await waiting
    assert device.events == ["flush", "unmount"]


async def test_requests_that_take_too_long_are_cancelled_and_flush_follows(
    path: Path, outside: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    device = PuppetDisk()
    async with serve(device, unix=path, drain_timeout=0.05):
        client = await outside.enter_async_context(using(path))
        client.send(READ, 0, 512)
        call = await device.calls.get()
    assert call.task is not None
    assert call.result.cancelled()
    assert device.events == ["flush", "unmount"]
    assert "requests in flight took too long" in caplog.text


async def test_shared_device_is_flushed_and_unmounted_once_after_the_last_request(
    path: Path,
) -> None:
    device = LoggingDevice()
    async with serve({"a": device}, unix=path), using(path) as one, using(path) as other:
        await one.write(0, bytes(512))
        await other.write(0, bytes(512))
    assert device.events == ["write", "write", "flush", "unmount"]


async def test_unused_device_is_flushed_and_unmounted(path: Path) -> None:
    device = LoggingDevice()
    async with serve(device, unix=path):
        pass
    assert device.events == ["flush", "unmount"]


async def test_failure_to_flush_is_raised_on_leaving_and_unmount_follows(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device, other = FailingDisk(), LoggingDevice()
    with pytest.raises(Error, match=r"FailingDisk.flush\(\) failed: .*the disk is on fire"):
        async with serve({"a": device, "b": other}, unix=path):
            pass
    assert device.events == other.events == ["flush", "unmount"]
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "export 'a' (FailingDisk): FailingDisk.flush() failed: OSError" in record.getMessage()
    assert record.exc_info is None  # an outage is no bug


async def test_flush_and_unmount_that_hang_are_cancelled(path: Path) -> None:
    device = StubbornDisk()
    with pytest.raises(Error, match=r"flush\(\) failed.*unmount\(\) failed"):
        async with serve(device, unix=path, drain_timeout=0.05):
            pass
    assert device.events == ["flush", "unmount"]


async def test_flush_and_unmount_of_a_clients_own_device_that_hang_are_cancelled(
    path: Path,
) -> None:
    device = StubbornDisk()
    async with serve(lambda: device, unix=path, drain_timeout=0.05) as server:
        async with using(path):
            pass
        await until_left(server)
    assert device.events == ["flush", "unmount"]


async def test_drain_goes_on_when_the_loop_cancels_it(path: Path) -> None:
    class Disk(PuppetDisk):
        async def flush(self) -> None:
            await self._wait(Call("flush", 0, 0))
            await super().flush()

    device = Disk()

    async def serving() -> None:
        async with serve(device, unix=path):
            pass

    leaving = asyncio.create_task(serving())
    call = await device.calls.get()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
    call.succeed()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert device.events == ["flush", "unmount"]


async def test_exception_of_the_block_is_raised_unchanged(path: Path) -> None:
    device = LoggingDevice()
    with pytest.raises(ZeroDivisionError):
        async with serve(device, unix=path):
            _ = 1 // 0
    assert device.events == ["flush", "unmount"]


async def test_exception_of_the_block_takes_precedence_over_a_failure_to_flush(path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with serve(FailingDisk(), unix=path):
            _ = 1 // 0


async def test_cancelled_block_drains_before_it_ends(path: Path) -> None:
    device = PuppetDisk()
    entered = asyncio.Event()

    async def serving() -> None:
        async with serve(device, unix=path):
            entered.set()
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(serving())
    await entered.wait()
    async with using(path) as client:
        cookie = client.send(READ, 0, 512)
        call = await device.calls.get()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        call.succeed()
        assert (await client.reply()).cookie == cookie
        assert await client.closed() == b""
    with pytest.raises(asyncio.CancelledError):
        await task
    assert device.events == ["flush", "unmount"]


@pytest.mark.parametrize("factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_end_of_the_event_loop_drains(path: Path, factory: type[asyncio.AbstractEventLoop]) -> None:
    device = PuppetDisk()
    tasks: list[asyncio.Task[None]] = []
    answers: list[bytes] = []

    async def serving(entered: asyncio.Event) -> None:
        async with serve(device, unix=path):
            entered.set()
            await asyncio.get_running_loop().create_future()

    async def answer_when_cancelled(client: NetworkClient) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            # The handler was cancelled as well, and is started again.
            (await device.calls.get()).succeed(b"\1" * 512)
            answers.append((await client.reply()).data)
            client.writer.close()
            await client.writer.wait_closed()

    async def main() -> None:
        entered = asyncio.Event()
        tasks.append(asyncio.create_task(serving(entered)))
        await entered.wait()
        client = NetworkClient(*await asyncio.open_unix_connection(path))
        await client.greet()
        await client.go()
        client.send(READ, 0, 512)
        await device.calls.get()
        tasks.append(asyncio.create_task(answer_when_cancelled(client)))
        await asyncio.sleep(0)  # both wait now

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert answers == [b"\1" * 512]
    assert device.events == ["flush", "unmount"]


async def test_wait_ends_when_a_closed_server_has_drained(path: Path) -> None:
    async with serve(LoggingDevice(), unix=path) as server, using(path) as client:
        server.close()
        server.close()
        await server.wait()
        assert await client.closed() == b""
        assert server.connections == []


async def test_cancelled_wait_leaves_the_server_as_it_is(path: Path) -> None:
    async with serve(LoggingDevice(), unix=path) as server:
        waiting = asyncio.create_task(server.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with using(path) as client:
            assert await client.read(0, 512) == bytes(512)


async def test_client_in_its_handshake_is_disconnected_at_shutdown(
    path: Path, outside: AsyncExitStack
) -> None:
    async with serve(LoggingDevice(), unix=path):
        client = await outside.enter_async_context(connected(path))
        await client.greet()
    assert await client.closed() == b""


# One client


async def test_disc_closes_the_connection_once_all_is_answered(path: Path) -> None:
    device = PuppetDisk()
    async with serve(device, unix=path) as server, using(path) as client:
        cookie = client.send(READ, 0, 512)
        call = await device.calls.get()
        client.send(DISC)
        call.succeed(b"\1" * 512)
        assert await client.reply() == (cookie, 0, b"\1" * 512)
        assert await client.closed() == b""
        await until_left(server)


async def test_end_of_file_without_disc_is_followed_by_the_replies(path: Path) -> None:
    device = PuppetDisk()
    async with serve(device, unix=path) as server, using(path) as client:
        cookie = client.send(READ, 0, 512)
        call = await device.calls.get()
        client.writer.write_eof()
        call.succeed(b"\1" * 512)
        assert await client.reply() == (cookie, 0, b"\1" * 512)
        assert await client.closed() == b""
        await until_left(server)


@pytest.mark.parametrize("part", ["header", "payload"])
async def test_client_that_disconnects_within_a_request_disturbs_no_other(
    path: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiovblk")
    device = LoggingDevice()
    async with serve(device, unix=path) as server, using(path) as other:
        async with using(path) as client:
            _, message = client.request(WRITE, 0, data=bytes(512))
            client.writer.write(message[: 10 if part == "header" else 100])
            client.writer.write_eof()
            assert await client.closed() == b""
        assert await other.read(0, 512) == bytes(512)
        await until_left(server, but=1)
    assert "disconnected without NBD_CMD_DISC" in caplog.text
    assert device.events == ["flush", "unmount"]


async def test_client_that_violates_the_protocol_is_disconnected(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(LoggingDevice(), unix=path) as server, using(path) as other:
        async with using(path) as client:
            client.writer.write(b"GET / HTTP/1.1\r\n" * 2)
            assert await client.closed() == b""
        assert await other.read(0, 512) == bytes(512)
        await until_left(server, but=1)
    assert "expected a request, found the magic number 0x47455420" in caplog.text
    assert "HTTP" not in caplog.text


async def test_connection_shows_peer_export_and_counters(path: Path) -> None:
    async with serve({"disk": LoggingDevice()}, unix=path) as server, using(path, "disk") as client:
        await client.write(0, bytes(512))
        [seen] = server.connections
        assert (seen.peer, seen.export, seen.stats.writes) == ("a local client", "disk", 1)
        assert repr(seen) == "<Connection of a local client to 'disk'>"


async def test_failed_request_is_answered_and_the_connection_lives_on(path: Path) -> None:
    device = PuppetDisk()
    async with serve(device, unix=path), using(path) as client:
        client.send(READ, 0, 512)
        (await device.calls.get()).fail(OSError(errno.ENOSPC, "full"))
        assert (await client.reply()).error == errno.ENOSPC
        client.send(READ, 0, 512)
        (await device.calls.get()).succeed()
        assert (await client.reply()).error == 0


async def test_handler_that_ignores_cancellation_is_abandoned(
    path: Path, outside: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "CLOSE_TIMEOUT", 0.05)
    released = asyncio.Event()

    class Device(PuppetDisk):
        async def read(self, offset: int, length: int) -> bytes:
            while not released.is_set():
                try:
                    self.calls.put_nowait(None)  # type: ignore[arg-type]
                    await released.wait()
                except asyncio.CancelledError:
                    pass
            return bytes(length)

    device = Device()
    async with serve(device, unix=path, drain_timeout=0.05):
        client = await outside.enter_async_context(using(path))
        client.send(READ, 0, 512)
        await device.calls.get()
    assert device.events == ["flush", "unmount"]
    released.set()
