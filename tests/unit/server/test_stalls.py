"""Stall detection, idle timeout, keepalive, and the memory of unfinished requests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import Any, TypeVarTuple

import pytest

from aiovblk.dispatch import ConnectionQuota, Dispatcher, MemoryBudget, Stats
from aiovblk.dispatch.memory_budget import ALWAYS_ALLOWED
from aiovblk.protocol import Command, Request, serialize_request
from aiovblk.server import stalls
from aiovblk.server.listeners import KEEPALIVE
from aiovblk.server.stalls import (
    CHECK_INTERVAL,
    LOW_MEMORY_TIMEOUT,
    MIN_PROGRESS,
    STALL_TIMEOUT,
    IdleTimer,
    StallMonitor,
)
from aiovblk.storage import MemoryDevice
from aiovblk.stream import StreamProtocol
from tests.support.timers import LATER, Timers

from ...support.network_client import (
    MIB,
    READ,
    WRITE,
    LoggingDevice,
    PuppetDisk,
    clients_of,
    serve,
    using,
)
from ...support.polling import until
from ...support.simulated_loop import MemoryTransport, StillLoop

Ts = TypeVarTuple("Ts")


class TimedLoop(StillLoop):
    """An event loop whose clock the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.timers.append(asyncio.TimerHandle(when, callback, args, self, context))
        return self.timers[-1]

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Does nothing."""

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            pending = [each for each in self.timers if not each.cancelled() and each.when() <= end]
            if not pending:
                break
            timer = min(pending, key=lambda each: each.when())
            self.timers.remove(timer)
            self.now = max(self.now, timer.when())
            timer._run()
            self.run_due()
        self.now = end

    @property
    def is_waiting(self) -> bool:
        return any(not each.cancelled() for each in self.timers)


class Transfer:
    """A transfer that a StallMonitor checks."""

    def __init__(self) -> None:
        self.progress: tuple[int, int] | None = (1, 0)
        self.is_short = False
        self.stalled: list[float] = []
        self.monitor = StallMonitor(
            lambda: self.progress, lambda: self.is_short, self.stalled.append
        )
        self.monitor.start()


def test_transfer_that_does_not_move_is_stalled_after_a_minute() -> None:
    with TimedLoop() as loop:
        transfer = Transfer()
        loop.advance(STALL_TIMEOUT - CHECK_INTERVAL)
        assert not transfer.stalled
        loop.advance(2 * CHECK_INTERVAL)
        assert transfer.stalled == [STALL_TIMEOUT]
        assert not loop.is_waiting


def test_transfer_that_drips_is_stalled_as_well() -> None:
    with TimedLoop() as loop:
        transfer = Transfer()
        for count in range(int(STALL_TIMEOUT) + 1):
            transfer.progress = 1, count
            loop.advance(1)
        assert transfer.stalled == [STALL_TIMEOUT]


def test_transfer_that_is_slow_is_not_stalled_and_neither_are_many_in_a_row() -> None:
    with TimedLoop() as loop:
        transfer = Transfer()
        for count in range(500):
            transfer.progress = count // 100, count * MIN_PROGRESS // 50
            loop.advance(1)
        for count in range(500):
            transfer.progress = count, 1
            loop.advance(1)
        assert not transfer.stalled


def test_transfer_that_stands_still_is_stalled_soon_while_memory_is_low() -> None:
    with TimedLoop() as loop:
        transfer = Transfer()
        transfer.is_short = True
        for count in range(20):
            transfer.progress = 1, count
            loop.advance(1)
        assert not transfer.stalled
        loop.advance(LOW_MEMORY_TIMEOUT + CHECK_INTERVAL)
        assert transfer.stalled == [LOW_MEMORY_TIMEOUT]


def test_time_in_which_this_process_was_stopped_does_not_count() -> None:
    with TimedLoop() as loop:
        transfer = Transfer()
        transfer.is_short = True
        loop.advance(CHECK_INTERVAL)
        loop.now += 10 * STALL_TIMEOUT  # what the client has sent meanwhile is still to be received
        loop.advance(LOW_MEMORY_TIMEOUT - CHECK_INTERVAL)
        assert not transfer.stalled
        loop.advance(2 * CHECK_INTERVAL)
        assert transfer.stalled == [LOW_MEMORY_TIMEOUT]


def test_complete_transfer_is_not_checked_until_the_next_one() -> None:
    with TimedLoop() as loop:
        transfer = Transfer()
        loop.advance(STALL_TIMEOUT / 2)
        transfer.progress = None
        loop.advance(2 * CHECK_INTERVAL)
        assert not loop.is_waiting
        transfer.progress = 2, 0
        transfer.monitor.start()
        transfer.monitor.start()
        loop.advance(STALL_TIMEOUT / 2)
        assert not transfer.stalled
        transfer.monitor.stop()
        assert not loop.is_waiting


def test_client_without_requests_is_idle_after_its_timeout_and_not_before() -> None:
    with TimedLoop() as loop:
        since: list[float | None] = [loop.now]
        idle: list[float] = []
        IdleTimer(100, lambda: since[0], lambda: idle.append(loop.now))
        loop.advance(90)
        since[0] = None
        loop.advance(500)
        answered = since[0] = loop.now
        loop.advance(99)
        assert not idle
        loop.advance(101)
        assert len(idle) == 1
        assert answered + 100 <= idle[0] <= answered + 200
        assert not loop.is_waiting


def test_without_a_timeout_no_timer_runs() -> None:
    with TimedLoop() as loop:
        IdleTimer(None, lambda: 0.0, lambda: None).stop()
        assert not loop.is_waiting


# Memory of requests that are not received whole


class Sender:
    """A client that sends requests without their last byte."""

    def __init__(self, loop: StillLoop, budget: MemoryBudget) -> None:
        self.unfinished = 0
        self.stream = StreamProtocol()
        self.transport = MemoryTransport(self.stream)
        self.quota = ConnectionQuota(budget, 64 * MIB)
        self.dispatcher = Dispatcher(
            MemoryDevice(64 * MIB),
            Stats(),
            quota=self.quota,
            on_disconnect=lambda: None,
            on_unfinished=self._on_unfinished,
        )
        self.dispatcher.attach_stream(self.stream)
        self.serving = loop.start(self.dispatcher.run())

    def _on_unfinished(self) -> None:
        self.unfinished += 1


def write(length: int) -> bytes:
    return serialize_request(Request(0, Command.WRITE, 1, 0, length)) + bytes(length)


def deliver(loop: StillLoop, sender: Sender, data: bytes) -> bytes:
    """Send while it is received; returns the rest."""
    while data:
        rest = sender.transport.deliver(data)
        loop.run_due()
        if len(rest) == len(data):
            break
        data = rest
    return data


def test_unfinished_requests_take_no_more_than_the_limit_and_the_one_that_passes_it() -> None:
    limit, size = 16 * MIB, 8 * MIB
    with StillLoop() as loop:
        budget = MemoryBudget(limit)
        senders = [Sender(loop, budget) for _ in range(12)]
        rests = [deliver(loop, sender, write(size)[:-1]) for sender in senders]
        assert [not rest for rest in rests] == [True] * 2 + [False] * 10
        held = sum(len(sender.stream.reader.buffer) for sender in senders)
        assert held <= limit + size + len(senders) * 2 * MIB
        assert budget.is_low()
        # A client that must go on is monitored; one that waits for memory is not.
        assert [sender.dispatcher.unfinished() is not None for sender in senders] == [True] * 2 + [
            False
        ] * 10
        # A request that is done and a connection that is closed let others go on, in order.
        assert not deliver(loop, senders[0], b"\0")
        senders[1].dispatcher.abort()
        senders[1].quota.close()
        loop.run_due()
        assert not deliver(loop, senders[2], rests[2])
        assert not deliver(loop, senders[3], rests[3])
        assert deliver(loop, senders[4], rests[4])
        for sender in senders:
            sender.dispatcher.abort()
            loop.run_due()
            sender.quota.close()
        assert budget.used == 0


def test_small_requests_go_on_although_others_hold_all_the_memory() -> None:
    with StillLoop() as loop:
        budget = MemoryBudget(MIB)
        hog, other = Sender(loop, budget), Sender(loop, budget)
        assert not deliver(loop, hog, write(8 * MIB)[:-1])
        for _ in range(3):
            assert not deliver(loop, other, write(ALWAYS_ALLOWED - 4096))
        assert other.dispatcher.stats.writes == 3
        for sender in (hog, other):
            sender.dispatcher.abort()
            loop.run_due()
            sender.quota.close()
        assert budget.used == 0


def test_memory_of_a_refused_request_is_refunded_whole() -> None:
    with StillLoop() as loop:
        budget = MemoryBudget(64 * MIB)
        sender = Sender(loop, budget)
        beyond = serialize_request(Request(0, Command.WRITE, 1, 1 << 40, MIB)) + bytes(MIB)
        for _ in range(3):
            assert not deliver(loop, sender, beyond[:-1])
            assert budget.used >= MIB
            assert not deliver(loop, sender, beyond[-1:])
            assert budget.used == 0
        sender.dispatcher.abort()
        loop.run_due()


async def test_client_that_does_not_finish_its_request_is_disconnected(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stalls, "CHECK_INTERVAL", 0.01)
    monkeypatch.setattr(stalls, "STALL_TIMEOUT", 0.05)
    device = LoggingDevice()
    async with serve(device, unix=path) as server, using(path) as client:
        _, message = client.request(WRITE, 0, data=bytes(MIB))
        client.writer.write(message[:-1])
        assert await client.closed() == b""
        await until(lambda: not server.connections)
        assert clients_of(server)._settings.budget.used == 0
    assert "a local client: it has sent too little of a request for 0.05 s" in caplog.text
    assert "write" not in device.events


async def test_idle_timeout_disconnects_the_client(path: Path, timers: Timers) -> None:
    async with serve(LoggingDevice(), unix=path, idle_timeout=LATER) as server:
        events = server.events()
        async with using(path) as client:
            assert await client.read(0, 512) == bytes(512)
            timers.go_off(LATER / 2)  # so that it was not idle for long enough
            assert await client.read(0, 512) == bytes(512)
            timers.go_off()
            assert await client.closed() == b""
        reasons = [getattr(await anext(events), "reason", "") for _ in range(2)]
    assert reasons == ["", "idle timeout: no request for 3600 s"]


async def test_client_whose_request_takes_long_is_not_idle(path: Path, timers: Timers) -> None:
    device = PuppetDisk()
    async with serve(device, unix=path, idle_timeout=LATER), using(path) as client:
        client.send(READ, 0, 512)
        call = await device.calls.get()
        for _ in range(5):
            timers.go_off()
        call.succeed()
        assert (await client.reply()).error == 0


async def test_client_whose_request_waits_for_memory_is_not_idle(
    path: Path, timers: Timers
) -> None:
    device = PuppetDisk()
    serving = serve(device, unix=path, idle_timeout=LATER, memory=MIB)
    async with serving as server, using(path) as first:
        first.send(WRITE, 0, data=bytes(2 * MIB))
        call = await device.calls.get()
        async with using(path) as second:
            second.send(WRITE, 0, data=bytes(MIB))
            await until(lambda: clients_of(server)._settings.budget.is_low())
            for _ in range(5):
                timers.go_off()
            call.succeed()
            assert (await first.reply()).error == 0
            (await device.calls.get()).succeed()
            assert (await second.reply()).error == 0


@pytest.mark.parametrize("timeout", [0, -1])
async def test_idle_timeout_must_be_positive(path: Path, timeout: float) -> None:
    with pytest.raises(ValueError, match="idle_timeout must be a positive number"):
        async with serve(LoggingDevice(), unix=path, idle_timeout=timeout):
            pass


@pytest.mark.parametrize("given", ["by us", "listening", "connected"])
async def test_tcp_clients_have_keepalive(given: str) -> None:
    ours = socket.create_server(("127.0.0.1", 0))
    options: dict[str, Any] = {"sockets": [ours]}
    if given == "by us":
        ours.close()
        options = {"host": "127.0.0.1", "port": 0}
    theirs: socket.socket | None = None
    if given == "connected":
        theirs = socket.create_connection(ours.getsockname())
        accepted, _ = ours.accept()
        accepted.setblocking(False)
        ours.close()
        options = {"sockets": [accepted]}
    async with serve(LoggingDevice(), **options) as server:
        if theirs is None:
            address = server.uris[0].split("//")[1].strip("/")
            host, _, port = address.rpartition(":")
            theirs = socket.create_connection((host, int(port)))
        await until(lambda: bool(server.connections))
        sock = clients_of(server).connected()[0]._stream.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for option, value in KEEPALIVE.items():
            assert sock.getsockopt(socket.IPPROTO_TCP, option) == value
        theirs.close()
