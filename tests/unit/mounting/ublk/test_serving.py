"""Requests of a ublk device: statistics, events and limits are those of an NBD device."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NoReturn

import pytest
import uvloop

import aiovblk
from aiovblk import BlockDevice
from aiovblk.dispatch import pacing, scheduler
from aiovblk.events import Event, EventStream, RequestFailed, SlowRequest
from aiovblk.protocol import Command
from aiovblk.storage import MemoryDevice
from aiovblk.stream import BusyPoll
from aiovblk.threads import run_in_daemon_thread

from ....support.fake_kernel import FakeKernel
from ....support.fake_ublk import PAGE, FakeUblk, Op
from ....support.noting_disk import Disk
from ....support.slow_device import settle
from ....support.ublk_disk import check_end, in_flight

How = Literal["ioctl", "ublk"]
Ask = Callable[..., Awaitable[bytes]]

OPS = {
    Command.READ: Op.READ,
    Command.WRITE: Op.WRITE,
    Command.FLUSH: Op.FLUSH,
    Command.TRIM: Op.DISCARD,
    Command.WRITE_ZEROES: Op.WRITE_ZEROES,
}


@pytest.fixture(params=["ioctl", "ublk"])
def how(request: pytest.FixtureRequest) -> How:
    found: How = request.param
    return found


@pytest.fixture
def ask(how: How, request: pytest.FixtureRequest) -> Ask:
    """Make a request of a program, by either driver."""
    if how == "ublk":
        ublk: FakeUblk = request.getfixturevalue("ublk_kernel")

        def send(command: Command, *arguments: Any) -> Awaitable[bytes]:
            return asyncio.wrap_future(ublk.send(OPS[command], *arguments))

        return send
    nbd: FakeKernel = request.getfixturevalue("kernel")
    return lambda *arguments: asyncio.wrap_future(run_in_daemon_thread(nbd.request, *arguments))


class Medium(MemoryDevice):
    """Blocks from the seventh on are bad; reads of the sixth wait for :attr:`gate`."""

    def __init__(self) -> None:
        super().__init__(16 * PAGE, block_size=PAGE)
        self.gate: asyncio.Future[None] | None = None
        self.began = asyncio.Event()
        self.running = self.most_running = 0

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        if offset >= 7 * PAGE:
            raise OSError(errno.EIO, "a bad block")
        if offset == 6 * PAGE:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self.began.set()
            try:
                self.gate = self.gate or asyncio.get_running_loop().create_future()
                await asyncio.shield(self.gate)
            finally:
                self.running -= 1
        return await super().read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        await asyncio.sleep(0)
        if offset >= 7 * PAGE:
            raise OSError(errno.ENOSPC, "no space left")
        await super().write(offset, data)


async def test_content_statistics_and_events(how: How, ask: Ask) -> None:
    async with aiovblk.mounted(Medium(), attach=how) as mount:
        before, events = mount.stats, mount.events()
        await ask(Command.WRITE, PAGE, PAGE, b"1" * PAGE)
        await ask(Command.WRITE, 2 * PAGE, 2 * PAGE, b"2" * (2 * PAGE))
        assert await ask(Command.READ, PAGE, 2 * PAGE) == b"1" * PAGE + b"2" * PAGE
        await ask(Command.FLUSH, 0, 0)
        await ask(Command.TRIM, 2 * PAGE, PAGE)
        await ask(Command.WRITE_ZEROES, PAGE, PAGE)
        assert await ask(Command.READ, 0, 4 * PAGE) == bytes(3 * PAGE) + b"2" * PAGE
        expected = []
        for command, offset, error in (
            (Command.READ, 8 * PAGE, errno.EIO),
            (Command.WRITE, 8 * PAGE, errno.ENOSPC),
            (Command.READ, 16 * PAGE, errno.EINVAL),
            (Command.WRITE, 16 * PAGE, errno.ENOSPC),
            (Command.READ, 512, errno.EINVAL),
        ):
            data = bytes(PAGE) if command == Command.WRITE else b""
            with pytest.raises(OSError, match=r".") as caught:
                await ask(command, offset, PAGE, data)
            assert caught.value.errno == error
            expected.append((command.name.lower(), offset, PAGE, error))
        stats = mount.stats
        found = await first(events, RequestFailed, len(expected))
    assert [(each.command, each.offset, each.length, each.errno) for each in found] == expected
    assert "a bad block" in found[0].reason
    names = ("reads", "writes", "flushes", "trims", "write_zeroes", "bytes_read", "bytes_written")
    counted = {name: getattr(stats, name) - getattr(before, name) for name in names}
    assert counted == {
        "reads": 2,
        "writes": 2,
        "flushes": 1,
        "trims": 1,
        "write_zeroes": 1,
        "bytes_read": 6 * PAGE,
        "bytes_written": 3 * PAGE,
    }
    assert stats.errors_by_command == {"read": 3, "write": 2}
    assert stats.in_flight == 0
    assert stats.latency["read"].count - before.latency["read"].count == 5


async def first(events: EventStream, kind: type[Event], count: int) -> list[Any]:
    found = []
    async for event in events:
        if isinstance(event, kind):
            found.append(event)
        if len(found) == count:
            break
    return found


async def test_handler_timeout(how: How, ask: Ask) -> None:
    async with aiovblk.mounted(Medium(), attach=how, handler_timeout=0.05) as mount:
        events = mount.events()
        with pytest.raises(OSError, match=r".") as caught:
            await ask(Command.READ, 6 * PAGE, PAGE)
        assert caught.value.errno == errno.EIO
        (event,) = await first(events, RequestFailed, 1)
        assert "handler_timeout" in event.reason or "0.05" in event.reason
        assert await ask(Command.READ, 0, PAGE) == bytes(PAGE)


async def test_slow_request(how: How, ask: Ask) -> None:
    medium = Medium()
    async with aiovblk.mounted(medium, attach=how, slow_request=0.05) as mount:
        events = mount.events()
        reading = asyncio.ensure_future(ask(Command.READ, 6 * PAGE, PAGE))
        (event,) = await first(events, SlowRequest, 1)
        assert (event.command, event.offset, event.length) == ("read", 6 * PAGE, PAGE)
        assert medium.gate is not None
        medium.gate.set_result(None)
        assert await reading == bytes(PAGE)


async def test_concurrency_limits_the_handlers(how: How, ask: Ask) -> None:
    medium = Medium()
    async with aiovblk.mounted(medium, attach=how, concurrency=2) as mount:
        reads = [asyncio.ensure_future(ask(Command.READ, 6 * PAGE, PAGE)) for _ in range(20)]
        await in_flight(mount, 20)
        await medium.began.wait()
        await settle()
        assert medium.running == 2
        assert medium.gate is not None
        medium.gate.set_result(None)
        assert await asyncio.gather(*reads) == [bytes(PAGE)] * 20
        assert medium.most_running == 2
        assert mount.stats.max_in_flight == 20


async def test_busy_poll(how: How, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    extend, stop = BusyPoll.extend, BusyPoll.stop

    def note_extend(self: BusyPoll) -> None:
        calls.append("extend")
        extend(self)

    def note_stop(self: BusyPoll) -> None:
        calls.append("stop")
        stop(self)

    monkeypatch.setattr(BusyPoll, "extend", note_extend)
    monkeypatch.setattr(BusyPoll, "stop", note_stop)
    async with aiovblk.mounted(Medium(), attach=how, busy_poll=50):
        calls.clear()
        assert await ask(Command.READ, 0, PAGE) == bytes(PAGE)
        assert "extend" in calls
    assert "stop" in calls


# Tags


async def test_payload_of_what_waits_is_not_copied(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    real = os.pread

    def count(fd: int, length: int, offset: int) -> bytes:
        if offset >= 0x80000000 and length == 3 * PAGE:
            copied.append(offset)
        return real(fd, length, offset)

    medium = Medium()
    async with aiovblk.mounted(medium, attach="ublk", concurrency=1) as mount:
        blocking = ublk_kernel.send(Op.READ, 6 * PAGE, PAGE)
        await medium.began.wait()
        monkeypatch.setattr(os, "pread", count)
        writes = [ublk_kernel.send(Op.WRITE, 0, 3 * PAGE, b"w" * 3 * PAGE) for _ in range(100)]
        await in_flight(mount, 101)
        assert copied == []
        assert medium.gate is not None
        medium.gate.set_result(None)
        await asyncio.gather(*map(asyncio.wrap_future, [blocking, *writes]))
        assert len(copied) == 100
        monkeypatch.undo()
    assert await medium.read(0, PAGE) == b"w" * PAGE


@pytest.mark.parametrize("features", [0x1FE, 0x17E])
async def test_more_requests_than_tags(
    ublk_kernel: FakeUblk, ublk_disk: Disk, features: int
) -> None:
    ublk_kernel.features = features
    async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
        before = mount.stats.reads
        writes = [
            ublk_kernel.send(Op.WRITE, n % 16 * PAGE, PAGE, bytes([n % 16]) * PAGE)
            for n in range(400)
        ]
        await asyncio.gather(*map(asyncio.wrap_future, writes))
        reads = [ublk_kernel.send(Op.READ, n % 16 * PAGE, PAGE) for n in range(400)]
        found = await asyncio.gather(*map(asyncio.wrap_future, reads))
        assert [set(each) for each in found] == [{n % 16} for n in range(400)]
        assert (mount.stats.reads - before, mount.stats.writes) == (400, 400)
        assert ublk_kernel.device.most_in_flight == 128
    check_end(ublk_kernel)


async def test_fua_is_a_write_and_a_flush(ublk_kernel: FakeUblk, ublk_disk: Disk) -> None:
    async with aiovblk.mounted(ublk_disk, attach="ublk"):
        done = ublk_kernel.send(Op.WRITE, 0, PAGE, b"f" * PAGE, 1 << 13)
        await asyncio.wrap_future(done)
        assert ublk_kernel.log[-2:] == ["write", "flush"]
        assert ublk_disk.content[0] == ord("f")
    check_end(ublk_kernel)


async def test_operation_that_is_not_known_is_refused(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
        for op in (4, 17):  # WRITE_SAME, of old; a zone's
            with pytest.raises(OSError, match="answer") as caught:
                await asyncio.wrap_future(ublk_kernel.send(op, 0, PAGE))
            assert caught.value.errno == errno.EINVAL
        assert mount.stats.errors_by_command == {"unknown": 2}
    check_end(ublk_kernel)


async def test_handler_that_is_cancelled_from_outside_is_run_again_with_its_payload(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    ublk_disk.hanging = {"write"}
    async with aiovblk.mounted(ublk_disk, attach="ublk"):
        writing = ublk_kernel.send(Op.WRITE, 0, PAGE, b"again".ljust(PAGE))
        await asyncio.wrap_future(ublk_kernel.when("write"))
        ublk_disk.hanging.clear()
        for task in asyncio.all_tasks():
            if "serve" in repr(task.get_coro()) and task is not asyncio.current_task():
                task.cancel()
        await asyncio.wrap_future(writing)
        assert ublk_disk.content[:5] == b"again"
    check_end(ublk_kernel)


# Fairness


class Counting(MemoryDevice):
    """Each write takes a millisecond of a clock, and is counted in its turn of the event loop."""

    def __init__(self) -> None:
        super().__init__(1 << 20, block_size=PAGE)
        self.now = 1_000_000_000
        self.turns: list[int] = []

    async def write(self, offset: int, data: memoryview) -> None:
        self.now += 1_000_000
        self.turns[-1] += 1


@pytest.mark.parametrize("most", [1, 128])
async def test_flood_of_large_writes_keeps_the_loop_no_longer_than_a_time_slice(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    size = 256 << 10
    device = Counting()
    for module in (pacing, scheduler):
        monkeypatch.setattr(module, "monotonic_ns", lambda: device.now)
    async with aiovblk.mounted(device, attach="ublk"):
        ublk_kernel.device.most = most
        with ublk_kernel.changed:  # all at once
            writes = [ublk_kernel.send(Op.WRITE, 0, size, bytes(size)) for _ in range(128)]
        while not all(each.done() for each in writes):
            device.turns.append(0)
            await asyncio.sleep(0)
    assert sum(device.turns) == 128
    assert max(device.turns) <= 3, device.turns
    check_end_of(ublk_kernel)


def check_end_of(kernel: FakeUblk) -> None:
    assert kernel.leaks() == []


# Interrupts


class Interrupted(BlockDevice):
    """Its second page cannot be read without Ctrl-C."""

    blocks = 16

    async def read(self, offset: int, length: int) -> bytes:
        if offset == PAGE:
            self.interrupt()
        return bytes(length)

    def interrupt(self) -> NoReturn:
        raise KeyboardInterrupt


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_interrupt_of_a_handler_leaves_no_request_unanswered(
    ublk_kernel: FakeUblk, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    device = Interrupted()
    running = loop()
    opened = aiovblk.mounted(device, attach="ublk")

    async def begin() -> None:
        await opened.__aenter__()

    async def end() -> None:
        await asyncio.gather(*map(asyncio.wrap_future, [*reads[:5], *reads[6:]]))
        with pytest.raises(OSError, match="answer"):
            await asyncio.wrap_future(reads[5])
        await opened.__aexit__(None, None, None)

    running.run_until_complete(begin())
    with ublk_kernel.changed:
        reads = [ublk_kernel.send(Op.READ, n == 5 and PAGE, PAGE) for n in range(20)]
    with pytest.raises(KeyboardInterrupt):
        running.run_until_complete(asyncio.Event().wait())
    running.run_until_complete(end())
    running.close()
    check_end_of(ublk_kernel)
    del running
    gc.collect()  # asyncio complains here of the task that was interrupted, and not in another test
