"""Limits: max_connections, handshake timeout, concurrency, memory quota, backpressure, logging."""

from __future__ import annotations

import asyncio
import errno
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.protocol import MAX_PAYLOAD, Option, OptionReply
from aiovblk.protocol.options import serialize_info_request, serialize_option
from aiovblk.server import client_stream, stalls, warning_limiter
from aiovblk.server.warning_limiter import MAX_LINES, WarningLimiter
from aiovblk.stream.receive_buffer import BUFFER_SIZE
from tests.support.timers import LATER, Timers

from ...support.network_client import (
    DISC,
    MIB,
    READ,
    WRITE,
    LoggingDevice,
    PuppetDisk,
    clients_of,
    connected,
    serve,
    until_left,
    using,
)
from ...support.polling import until


class Zeroes(BlockDevice):
    """Takes no memory; counts the handlers that run."""

    block_size, blocks = 4096, 2**20

    def __init__(self) -> None:
        self.running = self.max_running = self.most_used = 0
        self.used: Callable[[], int] = lambda: 0

    async def read(self, offset: int, length: int) -> bytes:
        await self._work()
        return bytes(length)

    async def write(self, offset: int, data: memoryview) -> None:
        await self._work()

    async def _work(self) -> None:
        self.running += 1
        await asyncio.sleep(0)
        self.max_running = max(self.max_running, self.running)
        self.most_used = max(self.most_used, self.used())
        self.running -= 1


# Clients


async def test_clients_beyond_max_connections_are_refused_and_accepted_later(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(LoggingDevice(), unix=path, max_connections=1) as server:
        async with using(path) as client:
            for _ in range(3):
                async with connected(path) as other:
                    assert await other.closed() == b""
            assert await client.read(0, 512) == bytes(512)
            assert len(server.connections) == 1
        await until_left(server)
        async with using(path) as client:
            assert await client.read(0, 512) == bytes(512)
    assert caplog.text.count("refused: max_connections (1) reached") == 3


async def test_warnings_about_clients_are_rate_limited(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(LoggingDevice(), unix=path):
        for _ in range(MAX_LINES + 5):
            async with connected(path) as client:
                await client.greet(flags=0xFF)  # unknown flags
                await client.closed()
    assert caplog.text.count("the handshake failed") == MAX_LINES
    assert "5 more clients were refused or failed" in caplog.text


async def test_suppressed_warnings_are_summed_up_when_their_minute_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(warning_limiter, "monotonic", lambda: now[0])
    limiter = WarningLimiter()
    for _ in range(MAX_LINES + 2):
        limiter.warn("%s is wrong", "it")
    assert len(caplog.messages) == MAX_LINES
    now[0] += warning_limiter.WINDOW
    limiter.warn("%s is wrong", "another")
    more, new = caplog.messages[MAX_LINES:]
    assert (more, new) == ("2 more clients were refused or failed", "another is wrong")
    limiter.close()
    assert len(caplog.messages) == MAX_LINES + 2


@pytest.mark.parametrize("stage", ["mute", "after the greeting", "within an option", "one by one"])
async def test_handshake_timeout_disconnects_the_client(
    path: Path, stage: str, timers: Timers, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serve(LoggingDevice(), unix=path, handshake_timeout=LATER),
        connected(path) as client,
    ):
        await until(lambda: timers.count() == 1)
        if stage != "mute":
            await client.greet()
        if stage == "within an option":
            client.writer.write(serialize_option(Option.GO, bytes(100))[:-1])
        if stage == "one by one":
            for _ in range(10):
                await client.ask(Option.LIST)
        assert timers.count() == 1  # for all that it says
        timers.go_off()
        await client.closed()
    assert "a local client: handshake timeout: no export chosen in 3600 s" in caplog.text


async def test_no_timer_runs_for_a_client_that_is_idle(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def remember(start: Any) -> Any:
        def call(*args: Any, **options: Any) -> asyncio.TimerHandle:
            timers.append(start(*args, **options))
            return timers[-1]

        return call

    async with serve(LoggingDevice(), unix=path, slow_request=0.01):
        for name in ("call_later", "call_at"):
            monkeypatch.setattr(loop, name, remember(getattr(loop, name)))
        async with using(path) as client:
            await client.write(0, bytes(512))
            assert await client.read(0, 512) == bytes(512)
            assert timers  # that of the handshake
            # The one that looks for slow requests finds none, and starts no other.
            await until(
                lambda: all(timer.cancelled() or timer.when() < loop.time() for timer in timers)
            )
        monkeypatch.undo()


# Concurrency


async def test_ten_slow_reads_of_one_client_run_at_once(path: Path) -> None:
    device = PuppetDisk()
    async with serve(device, unix=path), using(path) as client:
        cookies = [client.send(READ, 512 * at, 512) for at in range(10)]
        calls = [await device.calls.get() for _ in cookies]  # none of them has returned
        for call in reversed(calls):
            call.succeed()
        assert set(await client.replies(10)) == set(cookies)


async def test_concurrency_limits_the_handlers_of_one_client(path: Path) -> None:
    device = Zeroes()
    async with serve(device, unix=path, concurrency=3), using(path) as client:
        for _ in range(20):
            client.send(READ, 0, 4096)
        await client.replies(20)
    assert device.max_running == 3


async def test_handler_timeout_fails_the_request_alone(path: Path, timers: Timers) -> None:
    device = PuppetDisk()
    async with serve(device, unix=path, handler_timeout=LATER), using(path) as client:
        client.send(READ, 0, 512)
        call = await device.calls.get()
        timers.go_off()
        assert (await client.reply()).error == errno.EIO
        assert call.result.cancelled()
        client.send(READ, 0, 512)
        (await device.calls.get()).succeed()
        assert (await client.reply()).error == 0


# Memory


@pytest.mark.parametrize("command", [READ, WRITE])
@pytest.mark.parametrize("limits", [{"connection_memory": 4 * MIB}, {"memory": 4 * MIB}])
async def test_many_large_requests_are_all_answered_within_the_limit(
    path: Path, command: int, limits: dict[str, Any]
) -> None:
    device = Zeroes()
    async with serve(device, unix=path, **limits) as server, using(path) as client:
        budget = clients_of(server)._settings.budget
        device.used = lambda: budget.used
        data = bytes(MIB) if command == WRITE else b""
        for _ in range(64):
            client.send(command, 0, MIB, data)
        for _ in range(64):
            assert (await client.reply()).error == 0
        assert 0 < device.most_used <= 5 * MIB + 2**16
        assert device.max_running <= 5
        client.send(DISC)
        await client.closed()
        await until_left(server)
        assert budget.used == 0


async def test_client_with_all_the_memory_leaves_the_others_one_request_each(path: Path) -> None:
    device = PuppetDisk()
    async with (
        serve(device, unix=path, memory=MIB) as server,
        using(path) as greedy,
        using(path) as modest,
    ):
        for _ in range(4):
            greedy.send(READ, 0, MIB)
        first = await device.calls.get()
        for at in range(3):
            cookie = modest.send(READ, at * 512, 512)
            (await device.calls.get()).succeed()
            assert (await modest.reply()).cookie == cookie
        assert clients_of(server)._settings.budget.used < 2 * MIB
        assert device.calls.empty()
        device.calls.put_nowait(first)
        for _ in range(4):
            (await device.calls.get()).succeed()
            assert len((await greedy.reply()).data) == MIB


async def test_memory_of_a_client_is_refunded_once_however_it_disconnects(path: Path) -> None:
    async with serve(Zeroes(), unix=path) as server:
        budget = clients_of(server)._settings.budget
        for how in ("disc", "end", "abort"):
            async with using(path) as client:
                # More than the socket takes: replies wait in the server when it drains.
                for _ in range(8):
                    client.send(READ, 0, MIB)
                if how == "disc":
                    client.send(DISC)
                if how != "abort":
                    client.writer.write_eof()
                    await client.replies(8)
                else:
                    await client.reply()
            await until_left(server)
            assert (how, budget.used, budget.waiting) == (how, 0, {})


async def test_client_that_reads_nothing_blocks_no_other_and_is_disconnected(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stalls, "STALL_TIMEOUT", 0.1)
    monkeypatch.setattr(stalls, "CHECK_INTERVAL", 0.02)
    async with (
        serve(Zeroes(), unix=path, connection_memory=8 * MIB) as server,
        using(path) as deaf,
        using(path) as client,
    ):
        deaf.transport.pause_reading()
        for _ in range(64):
            deaf.send(READ, 0, MIB)
        while len(server.connections) > 1:
            assert await client.read(0, 4096) == bytes(4096)
            assert clients_of(server)._settings.budget.used < 10 * MIB
    assert "it has read too little for 0.1 s; disconnected" in caplog.text


async def test_client_that_reads_slowly_is_not_disconnected(path: Path) -> None:
    async with serve(Zeroes(), unix=path) as server, using(path) as client:
        client.transport.pause_reading()
        for _ in range(8):
            client.send(READ, 0, MIB)
        stream = clients_of(server).connected()[0]._stream
        await until(lambda: stream.write_paused)
        stream._monitor.check()
        assert stream.stalled is None
        client.transport.resume_reading()
        await client.replies(8)


async def test_option_replies_that_are_not_read_cause_backpressure(path: Path) -> None:
    exports = {f"{at:04}": LoggingDevice() for at in range(1000)}
    async with serve(exports, unix=path) as server, connected(path) as client:
        await client.greet()
        client.transport.pause_reading()
        question = serialize_option(Option.LIST)
        for _ in range(200):
            client.writer.write(question)  # each is answered by 28 kB
        [connection] = clients_of(server).connected()
        await until(lambda: connection._stream.write_paused)
        for _ in range(10):
            await asyncio.sleep(0)
        size = connection._stream.transport.get_write_buffer_size()
        assert size < 2 * client_stream.WRITE_BUFFER
        client.transport.resume_reading()
        for _ in range(200 * 1001):
            await client.option_reply(Option.LIST)


async def test_announced_payload_that_does_not_come_takes_little_memory(path: Path) -> None:
    async with serve(Zeroes(), unix=path) as server, using(path) as client:
        _, message = client.request(WRITE, 0, MAX_PAYLOAD)
        client.writer.write(message + bytes(100))
        [connection] = clients_of(server).connected()
        reader = connection._stream.reader
        await until(lambda: reader.wanted > MAX_PAYLOAD)
        client.writer.write(bytes(100))
        assert len(reader.buffer) <= 2 * BUFFER_SIZE


async def test_longest_payload_is_accepted_and_a_longer_one_ends_the_connection(path: Path) -> None:
    async with serve(Zeroes(), unix=path), using(path) as client:
        await client.write(0, bytes(MAX_PAYLOAD))
        assert (await client.call(READ, 0, MAX_PAYLOAD + 4096)).error == errno.EINVAL
        _, message = client.request(WRITE, 0, MAX_PAYLOAD + 4096)
        client.writer.write(message)
        assert await client.closed() == b""


@pytest.mark.parametrize("length", [2**16 + 1, 2**20])
async def test_option_that_is_too_long_is_skipped(path: Path, length: int) -> None:
    async with serve(LoggingDevice(), unix=path), connected(path) as client:
        await client.greet()
        [(reply, _)] = await client.ask(Option.GO, bytes(length))
        assert reply == OptionReply.ERR_TOO_BIG
        await client.go()


@pytest.mark.parametrize("length", [5, 4097, 2**32 - 1])
async def test_lying_length_of_a_name_is_refused(path: Path, length: int) -> None:
    async with serve(LoggingDevice(), unix=path), connected(path) as client:
        await client.greet()
        [(reply, _)] = await client.ask(Option.GO, struct.pack(">I", length) + b"name")
        assert reply == OptionReply.ERR_INVALID
        await client.go()


# The log


@pytest.mark.parametrize(
    "name", ["\n2026-01-01 root logged in", "\x1b[2Jgone", "\r\0\x07", "a" * 4096, "é\u202e"]
)
async def test_log_has_nothing_that_a_client_has_written(
    path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiovblk")
    async with serve({"disk": LoggingDevice()}, unix=path), connected(path) as client:
        await client.greet()
        [(reply, _)] = await client.ask(Option.GO, serialize_info_request(name, []))
        assert reply == OptionReply.ERR_UNKNOWN
        client.writer.write(serialize_option(Option.EXPORT_NAME, name.encode()))
        assert await client.closed() == b""
    assert "the client asked for an export that is not there" in caplog.text
    for record in caplog.records:
        text = record.getMessage()
        assert text.isprintable()
        assert name not in text
