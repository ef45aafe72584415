"""A live device goes from one server to another by ublk, which shows only as a pause."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk import AttachError, DeviceBusyError, Error, Mount
from aiovblk.kernel import locks
from aiovblk.mounting.handover.endpoint import HandoverRequester
from aiovblk.storage import MemoryDevice
from aiovblk.ublk import identified
from aiovblk.ublk.commands import State
from aiovblk.ublk.identified import IdentifiedAttachment

from ....support.fake_ublk import PAGE, FakeUblk, Op
from ....support.noting_disk import LAST, Disk
from ....support.recovering_driver import RecordingWatchdog
from ....support.ublk_disk import begin, in_flight

identity: dict[str, Any] = {"identity": "volume"}
surviving: dict[str, Any] = {**identity, "survive": 60}
mounted = partial(aiovblk.mounted, attach="ublk")
X = b"x" * PAGE


@pytest.fixture(autouse=True)
def watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordingWatchdog:
    monkeypatch.setattr(locks, "LOCKS", tmp_path / "locks")
    made = RecordingWatchdog()
    monkeypatch.setattr(identified, "watchdog", made)
    return made


async def paused(mount: Mount) -> None:
    """Wait until a mount takes no more requests."""
    while not mount._lifecycle.connections.paused:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def read(kernel: FakeUblk) -> bytes:
    return await asyncio.wrap_future(kernel.send(Op.READ, 0, PAGE))


async def hold(kernel: FakeUblk, disk: Disk, mount: Mount) -> asyncio.Future[bytes]:
    """Have a read wait in its handler; return the future of its answer."""
    disk.gate = asyncio.get_running_loop().create_future()
    reading = asyncio.ensure_future(read(kernel))
    await in_flight(mount, 1)
    return reading


def release(disk: Disk) -> None:
    gate, disk.gate = disk.gate, None
    assert gate is not None
    gate.set_result(None)


async def test_live_device_is_handed_over(
    ublk_kernel: FakeUblk, watchdog: RecordingWatchdog
) -> None:
    """What was taken is answered by the old server; what comes after it, by the new one alone."""
    old, new = Disk(ublk_kernel), Disk(ublk_kernel)
    old.content[:PAGE] = X
    async with mounted(old, **surviving) as first:
        reading = await hold(ublk_kernel, old, first)
        taking = asyncio.create_task(begin(ublk_kernel, new, **surviving, replace=True))
        await paused(first)
        writes = [
            asyncio.wrap_future(ublk_kernel.send(Op.WRITE, page * PAGE, PAGE, X))
            for page in range(2, 9)
        ]
        release(old)
        assert await reading == X
        task, second = await taking
        await first.wait()
        assert second.path == first.path
        await asyncio.gather(*writes)
        assert (old.content.count(b"x"), new.content.count(b"x")) == (PAGE, 7 * PAGE)
        log = [each for each in ublk_kernel.log if each in ("flush", "unmount", "write")]
        assert log == [*LAST, *["write"] * 7]
        assert watchdog.asked == [("watch", 0), ("release", 0), ("watch", 0)]
    await second.unmount()
    await task
    assert ublk_kernel.leaks() == []
    assert ublk_kernel.log[-2:] == LAST


@pytest.mark.parametrize("failing", ["handler", "flush", "successor"])
async def test_handover_that_cannot_be_is_refused(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The old server serves on, also what has come meanwhile."""
    old = Disk(ublk_kernel)
    reason = {
        "handler": r"its handlers did not end within 0\.05 s",
        "flush": r"its flush\(\) failed: .*No space left",
        "successor": "the process that asked for it has not waited",
    }[failing]
    async with mounted(old, **surviving) as first:
        reading = await hold(ublk_kernel, old, first)
        if failing == "handler":
            monkeypatch.setattr(first._lifecycle.handover, "_timeout", 0.05)
        elif failing == "flush":
            old.failing.add("flush")
        elif failing == "successor":
            monkeypatch.setattr(HandoverRequester, "is_connected", lambda requester: False)
        taking = asyncio.create_task(begin(ublk_kernel, old, **surviving, replace=True))
        await paused(first)
        writing = asyncio.wrap_future(ublk_kernel.send(Op.WRITE, PAGE, PAGE, X))
        if failing != "handler":
            release(old)
        with pytest.raises(AttachError, match=f"does not hand it over: {reason}"):
            await taking
        await writing
        if failing == "handler":
            release(old)
        await reading
        assert ublk_kernel.device.is_live
        assert "unmount" not in ublk_kernel.log
        old.failing.clear()
    assert ublk_kernel.leaks() == []


async def test_device_that_is_left_waits(
    ublk_kernel: FakeUblk, watchdog: RecordingWatchdog
) -> None:
    async with mounted(Disk(ublk_kernel), **surviving) as first:
        await first.detach()
        await first.wait()
        assert watchdog.asked[-1] == ("release", 0)
    writing = asyncio.wrap_future(ublk_kernel.send(Op.WRITE, 0, PAGE, X))
    assert ublk_kernel.device.fields[2] == State.QUIESCED
    disk = Disk(ublk_kernel)
    async with mounted(lambda: disk, **surviving, replace=True) as second:
        assert second.path == first.path
        await writing
    assert disk.content[:PAGE] == X
    assert ublk_kernel.leaks() == []


async def test_device_that_does_not_survive_is_kept(ublk_kernel: FakeUblk, ublk_disk: Disk) -> None:
    async with mounted(ublk_disk, **identity) as first:
        with pytest.raises(Error, match="has to be mounted with survive="):
            await first.detach()
        with pytest.raises(AttachError, match="it was mounted without survive=, and the kernel"):
            async with mounted(ublk_disk, **identity, replace=True):
                pass
        assert await read(ublk_kernel) == bytes(PAGE)
    assert ublk_kernel.leaks() == []


def fail() -> Disk:
    raise RuntimeError("it cannot be made")


@pytest.mark.parametrize(
    ("make", "error"),
    [(fail, RuntimeError), (lambda: MemoryDevice(1 << 20), AttachError)],
)
async def test_successor_that_fails_leaves_it_to_a_third(
    ublk_kernel: FakeUblk, make: Callable[[], aiovblk.BlockDevice], error: type[Exception]
) -> None:
    async with mounted(Disk(ublk_kernel), **surviving) as first:
        with pytest.raises(error, match=r"cannot be made|and this device has 1048576"):
            async with mounted(make, **surviving, replace=True):
                pass
        await first.wait()
    disk = Disk(ublk_kernel)
    async with mounted(disk, **surviving, replace=True) as third:
        assert third.path == first.path
        assert await read(ublk_kernel) == bytes(PAGE)
    assert ublk_kernel.leaks() == []


async def test_of_two_successors_one_is_refused(ublk_kernel: FakeUblk) -> None:
    """During a handover, even one that then fails, no other begins, and none is kept waiting."""
    old, new = Disk(ublk_kernel), Disk(ublk_kernel)
    async with mounted(old, **surviving) as first:
        for ends in (False, True):
            old.failing = set() if ends else {"flush"}
            reading = await hold(ublk_kernel, old, first)
            taking = asyncio.create_task(begin(ublk_kernel, new, **surviving, replace=True))
            await paused(first)
            with pytest.raises(AttachError, match="it is being handed over or unmounted"):
                async with mounted(new, **surviving, replace=True):
                    pass
            release(old)
            await reading
            if not ends:
                with pytest.raises(AttachError, match=r"flush\(\) failed"):
                    await taking
        task, second = await taking
    await second.unmount()
    await task
    assert ublk_kernel.leaks() == []


async def test_successor_that_goes_away_at_the_last_moment(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The device waits for another one."""

    def disconnect(requester: HandoverRequester) -> bool:
        requester._sock.shutdown(socket.SHUT_RDWR)
        return True

    monkeypatch.setattr(HandoverRequester, "is_connected", disconnect)
    async with mounted(Disk(ublk_kernel), **surviving) as first:
        with pytest.raises(AttachError, match="it has just ended"):
            async with mounted(Disk(ublk_kernel), **surviving, replace=True):
                pass
        await first.wait()
        assert "the process that asked for it is gone; it waits for another" in caplog.text
    async with mounted(Disk(ublk_kernel), **surviving) as second:
        assert second.path == first.path
    assert ublk_kernel.leaks() == []


async def test_successor_that_is_stopped_meanwhile(ublk_kernel: FakeUblk) -> None:
    old = Disk(ublk_kernel)
    async with mounted(old, **surviving) as first:
        reading = await hold(ublk_kernel, old, first)
        mounting = aiovblk.mount(old, attach="ublk", **surviving, replace=True)
        taking = asyncio.create_task(mounting)
        await paused(first)
        taking.cancel()
        await asyncio.wait([taking])
        release(old)
        await reading
        assert await read(ublk_kernel) == bytes(PAGE)
        assert first._lifecycle.state.handover_requested.done() is False
    assert ublk_kernel.leaks() == []


async def test_device_elsewhere_is_not_asked_for(ublk_kernel: FakeUblk, ublk_disk: Disk) -> None:
    async with mounted(ublk_disk, **surviving):
        with pytest.raises(DeviceBusyError, match="attached at /dev/ublkb0; mount it there"):
            async with mounted(ublk_disk, "/dev/ublkb3", **surviving, replace=True):
                pass


async def test_another_server_comes_before_the_claim_is_released(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing it may write back, which the next server has to answer."""
    async with mounted(ublk_disk, **surviving) as first:
        attachment = first._lifecycle.attachment
        assert isinstance(attachment, IdentifiedAttachment)
        await asyncio.to_thread(attachment.claim_exclusively)
        states: list[int] = []
        real = IdentifiedAttachment._release_claim

        def look(detached: IdentifiedAttachment) -> None:
            states.append(ublk_kernel.device.fields[2])
            real(detached)

        with monkeypatch.context() as patch:
            patch.setattr(IdentifiedAttachment, "_release_claim", look)
            await first.detach()
        assert states == [State.QUIESCED]
        assert attachment.lock == -1
    async with mounted(ublk_disk, **surviving):
        pass
    assert ublk_kernel.leaks() == []
