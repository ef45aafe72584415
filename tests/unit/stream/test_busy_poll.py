"""Busy polling: for how long the loop has something to do."""

from __future__ import annotations

import pytest

from aiovblk.dispatch import Dispatcher, Stats, scheduler
from aiovblk.protocol import Command, Request, serialize_request
from aiovblk.storage import MemoryDevice
from aiovblk.stream import BusyPoll, StreamProtocol, busy_poll

from ...support.simulated_loop import MemoryTransport, StillLoop

READ = serialize_request(Request(0, Command.READ, 1, 0, 4096))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [10**12]
    for module in (busy_poll, scheduler):
        monkeypatch.setattr(module, "monotonic_ns", lambda: now[0])
    return now


def turn(loop: StillLoop) -> None:
    for _ in range(len(loop._due)):
        loop._due.popleft()._run()


def test_loop_stays_awake_for_the_duration_and_no_longer(clock: list[int]) -> None:
    with StillLoop() as loop:
        polling = BusyPoll(50)
        polling.extend(clock[0])
        for _ in range(5):
            turn(loop)
            assert len(loop._due) == 1
            clock[0] += 10_000
        turn(loop)
        assert not loop._due


def test_polling_is_extended_and_not_doubled(clock: list[int]) -> None:
    with StillLoop() as loop:
        polling = BusyPoll(50)
        polling.extend(clock[0])
        clock[0] += 40_000
        polling.extend(clock[0])
        turn(loop)
        clock[0] += 40_000
        turn(loop)
        assert len(loop._due) == 1
        polling.stop()
        turn(loop)
        assert not loop._due


@pytest.mark.parametrize("microseconds", [None, 20])
def test_connection_polls_after_each_batch_until_it_ends(
    clock: list[int], microseconds: int | None
) -> None:
    with StillLoop() as loop:
        stream = StreamProtocol()
        transport = MemoryTransport(stream)
        dispatcher = Dispatcher(
            MemoryDevice(1 << 20),
            Stats(),
            busy_poll=microseconds,
            on_disconnect=lambda: None,
        )
        dispatcher.attach_stream(stream)
        loop.start(dispatcher.run())
        for _ in range(2):
            transport.deliver(READ)
            for _ in range(4):
                turn(loop)
            assert bool(loop._due) == (microseconds is not None)
            clock[0] += 20_000
            loop.run_due()
        transport.deliver(READ)
        dispatcher.abort()
        loop.run_due()
