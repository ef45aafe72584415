"""Requests that are answered before the kernel kills an ordinary user's server for them."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace
from typing import Any

import pytest

import aiovblk
from aiovblk import BlockDevice
from aiovblk.mounting.ublk import overdue
from aiovblk.ublk import attaching

from ....support.fake_ublk import PAGE, FakeUblk, Op
from ....support.ublk_disk import in_flight


class Stubborn(BlockDevice):
    """Its reads of block 0 do not end when they are cancelled."""

    block_size = PAGE
    blocks = 16

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.is_stubborn = False
        self.end = asyncio.Event()
        self.written: list[bytes] = []

    async def read(self, offset: int, length: int) -> bytes:
        while self.is_stubborn and not self.end.is_set():
            try:
                await self.end.wait()
            except asyncio.CancelledError:
                continue
        if self.is_stubborn and self.fails:
            raise OSError(errno.ENXIO, "too late")
        return b"r" * length

    async def write(self, offset: int, data: memoryview) -> None:
        self.written.append(bytes(data))


@pytest.mark.parametrize("fails", [False, True])
async def test_handler_that_ends_after_the_answer_touches_no_other_request(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(attaching, "is_privileged", lambda: False)
    device = Stubborn(fails=fails)
    async with aiovblk.mounted(device, attach="ublk", concurrency=1) as mount:
        for name, seconds in {"INTERVAL": 0.01, "CANCEL_AFTER": 0.0, "ANSWER_AFTER": 0.0}.items():
            monkeypatch.setattr(overdue, name, seconds)
        device.is_stubborn = True
        late = asyncio.wrap_future(ublk_kernel.send(Op.READ, 0, PAGE))
        with pytest.raises(OSError, match="answer") as caught:
            await late
        assert caught.value.errno == errno.EIO
        for name in ("CANCEL_AFTER", "ANSWER_AFTER"):
            monkeypatch.setattr(overdue, name, 1000.0)
        # It has the tag of the first one, and waits until that has ended.
        writing = asyncio.wrap_future(ublk_kernel.send(Op.WRITE, 0, PAGE, b"w" * PAGE))
        await in_flight(mount, 1)
        device.end.set()
        await writing
        assert device.written == [b"w" * PAGE]
        assert mount.stats.in_flight == 0
        device.is_stubborn = False
    assert ublk_kernel.leaks() == []


class Tidy(BlockDevice):
    """Its read of block 0 hangs; when it is cancelled, it cleans up in some turns of the loop."""

    block_size = PAGE
    blocks = 16

    def __init__(self) -> None:
        self.hangs = False
        self.was_cancelled = 0
        self.has_cleaned_up = False

    async def read(self, offset: int, length: int) -> bytes:
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(100):
                    try:
                        await asyncio.sleep(0)
                    except asyncio.CancelledError:
                        self.was_cancelled += 1
                        raise
                self.has_cleaned_up = True
        return b"r" * length


async def test_handler_is_cancelled_once_and_may_clean_up(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attaching, "is_privileged", lambda: False)
    device = Tidy()
    async with aiovblk.mounted(device, attach="ublk"):
        monkeypatch.setattr(overdue, "INTERVAL", 0.0)
        monkeypatch.setattr(overdue, "CANCEL_AFTER", 0.0)
        device.hangs = True
        with pytest.raises(OSError, match="answer"):
            await asyncio.wrap_future(ublk_kernel.send(Op.READ, 0, PAGE))
        device.hangs = False
    assert (device.was_cancelled, device.has_cleaned_up) == (0, True)


async def test_requests_of_a_queue_that_has_ended_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overdue, "INTERVAL", 0.0)
    looks: list[int] = []
    scheduler: Any = SimpleNamespace(
        is_waiting=True, fail_arrived_before=looks.append, running_since=lambda arrival: []
    )
    watching = overdue.OverdueRequests(scheduler, lambda task, request: None)
    watching.watch()
    while not looks:  # noqa: ASYNC110
        await asyncio.sleep(0)
    watching.close()
    watching.watch()
    seen = len(looks)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(looks) == seen
