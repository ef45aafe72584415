"""Busy polling: for how long the loop has something to do."""

from __future__ import annotations

import pytest

from aiovblk.dispatch import Dispatcher, Stats, reply_sender, scheduler
from aiovblk.protocol import Command, Request, serialize_request
from aiovblk.storage import MemoryDevice
from aiovblk.stream import BusyPoll, StreamProtocol, busy_poll

from ...support.dispatch_client import PuppetDevice
from ...support.simulated_loop import MemoryTransport, StillLoop

READ = serialize_request(Request(0, Command.READ, 1, 0, 4096))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [10**12]
    for module in (busy_poll, reply_sender, scheduler):
        monkeypatch.setattr(module, "monotonic_ns", lambda: now[0])
    return now


def test_loop_stays_awake_for_the_duration_and_no_longer(clock: list[int]) -> None:
    with StillLoop() as loop:
        polling = BusyPoll(50)
        polling.extend()
        for _ in range(5):
            loop.turn()
            assert len(loop._due) == 1
            clock[0] += 10_000
        loop.turn()
        assert not loop._due


def test_polling_is_extended_and_not_doubled(clock: list[int]) -> None:
    with StillLoop() as loop:
        polling = BusyPoll(50)
        polling.extend()
        clock[0] += 40_000
        polling.extend()
        loop.turn()
        clock[0] += 40_000
        loop.turn()
        assert len(loop._due) == 1
        polling.stop()
        loop.turn()
        assert not loop._due


def test_interrupt_in_a_turn_does_not_end_polling_for_good(
    clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    with StillLoop() as loop:
        polling = BusyPoll(50)
        polling.extend()
        with monkeypatch.context() as patched:
            patched.setattr(busy_poll, "monotonic_ns", interrupted)
            with pytest.raises(KeyboardInterrupt):
                loop.turn()
        assert not loop._due
        polling.extend()
        loop.turn()
        assert len(loop._due) == 1


def test_connection_polls_after_the_reply_of_a_handler_that_has_waited(clock: list[int]) -> None:
    with StillLoop() as loop:
        device, stream = PuppetDevice(), StreamProtocol()
        transport = MemoryTransport(stream)
        dispatcher = Dispatcher(device, Stats(), busy_poll=20, on_disconnect=lambda: None)
        dispatcher.attach_stream(stream)
        loop.start(dispatcher.run())
        transport.deliver(READ)
        loop.turn()
        clock[0] += 20_000
        loop.run_due()
        device.calls.get_nowait().succeed()
        for _ in range(4):
            loop.turn()
        assert len(transport.sent) == 16 + 4096
        assert len(loop._due) == 1
        clock[0] += 20_000
        loop.turn()
        assert not loop._due
        dispatcher.abort()
        loop.run_due()


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
                loop.turn()
            assert bool(loop._due) == (microseconds is not None)
            clock[0] += 20_000
            loop.run_due()
        transport.deliver(READ)
        dispatcher.abort()
        loop.run_due()
