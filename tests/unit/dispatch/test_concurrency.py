"""ConcurrencyLimiter: whose turn it is, whatever becomes of the one before."""

from __future__ import annotations

import pytest

from aiovblk import BlockDevice
from aiovblk.dispatch import ConcurrencyLimiter, Dispatcher, Stats
from aiovblk.protocol import Command, Request, serialize_request
from aiovblk.stream import StreamProtocol

from ...support.dispatch_client import PuppetDevice
from ...support.simulated_loop import MemoryTransport, StillLoop

READ = serialize_request(Request(0, Command.READ, 1, 0, 512))


class Waiting:
    """A connection that waits with one handler, which may be interrupted."""

    def __init__(self, limiter: ConcurrencyLimiter, *, interrupted: bool = False) -> None:
        self.limiter = limiter
        self.interrupted = interrupted
        self.started = 0

    def start_ready(self) -> None:
        assert self.limiter.acquire(self)
        self.started += 1
        self.limiter.release()  # it ends at once
        if self.interrupted:
            raise KeyboardInterrupt


def test_connections_behind_one_that_is_interrupted_have_their_turn() -> None:
    limiter = ConcurrencyLimiter(1)
    first, *others = [Waiting(limiter, interrupted=at % 2 == 1) for at in range(5)]
    with StillLoop() as loop:
        assert limiter.acquire(first)
        assert not any(limiter.acquire(each) for each in others)
        with pytest.raises(KeyboardInterrupt):
            limiter.release()
        with pytest.raises(KeyboardInterrupt):
            loop.run_due()
        loop.run_due()
    assert [each.started for each in others] == [1, 1, 1, 1]
    assert (limiter.running, len(limiter.waiting)) == (0, 0)


class Interrupted(BlockDevice):
    """Its first handler is interrupted."""

    block_size, blocks = 512, 8

    def __init__(self) -> None:
        self.reads = 0

    async def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        if self.reads == 1:
            raise KeyboardInterrupt
        return bytes(length)


def test_interrupt_of_one_connections_handler_stalls_no_other() -> None:
    limiter, waiting = ConcurrencyLimiter(1), PuppetDevice()
    devices: list[BlockDevice] = [waiting, Interrupted(), *(PuppetDevice() for _ in range(3))]
    with StillLoop() as loop:
        stats, transports = [], []
        for device in devices:
            stream = StreamProtocol()
            transports.append(MemoryTransport(stream))
            stats.append(Stats())
            dispatcher = Dispatcher(device, stats[-1], limiter=limiter, on_disconnect=lambda: None)
            dispatcher.attach_stream(stream)
            loop.start(dispatcher.run())
            transports[-1].deliver(READ * 2)
            loop.run_due()
        interrupts = 0
        while sum(each.in_flight for each in stats):
            for device in devices:
                if isinstance(device, PuppetDevice) and not device.calls.empty():
                    device.calls.get_nowait().succeed()
            try:
                loop.run_due()
            except KeyboardInterrupt:
                interrupts += 1
            assert loop._due or limiter.running or not sum(each.in_flight for each in stats)
        assert interrupts == 1
        assert [(each.reads, each.errors) for each in stats] == [(2, 0), (1, 1)] + [(2, 0)] * 3
        for transport in transports:
            transport.lose()
        loop.run_due()
        assert limiter.running == 0
