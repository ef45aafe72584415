"""The order of an unmount of a ublk device, on every way out, before a fake driver."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable

import pytest
import uvloop

import aiovblk
from aiovblk import AttachError, DeviceBusyError, Error
from aiovblk.mounting import unmounting
from aiovblk.ublk import control
from aiovblk.ublk.served_device import ServedDevice

from ....support.fake_ublk import PAGE, FakeUblk, Op
from ....support.noting_disk import LAST, STORED, Disk
from ....support.polling import cancel_until_done
from ....support.ublk_disk import BEGUN, GONE, begin, check_end, check_stored, in_flight


async def test_each_step_is_made_while_the_later_ones_still_can_be(
    ublk_kernel: FakeUblk, ublk_disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
        assert (mount.path, mount.index) == ("/dev/ublkb0", 0)
        assert ublk_kernel.log == BEGUN
        ublk_kernel.write(3, b"cached")
    assert ublk_kernel.log == [*BEGUN, "claim", *STORED, *GONE, *LAST]
    check_stored(ublk_kernel, ublk_disk)
    assert not caplog.records


async def test_page_that_is_dirtied_after_the_sync_is_written_back_by_the_stop(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    ublk_kernel.before_stop = lambda: ublk_kernel.write(5, b"late")
    async with aiovblk.mounted(ublk_disk, attach="ublk"):
        ublk_kernel.write(3, b"cached")
    assert ublk_disk.content[5 * PAGE :][:4] == b"late"
    assert ublk_kernel.log == [
        *BEGUN, "claim", *STORED, "STOP_DEV", "write", *GONE[1:], *LAST,
    ]  # fmt: skip


async def test_requests_in_flight_are_answered_before_the_queue_is_closed(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    ublk_disk.content[0] = 7
    async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
        ublk_disk.gate = asyncio.get_running_loop().create_future()
        reading = asyncio.wrap_future(ublk_kernel.send(Op.READ, 0, PAGE))
        await asyncio.wrap_future(ublk_kernel.when("read"))
        unmount = asyncio.create_task(mount.unmount())
        await asyncio.wrap_future(ublk_kernel.when("STOP_DEV"))
        await asyncio.wait([unmount], timeout=0.01)
        assert ublk_kernel.log[-1] == "STOP_DEV"
        ublk_disk.gate.set_result(None)
        assert (await reading)[0] == 7
        await unmount
    check_end(ublk_kernel)


async def test_device_that_is_gone_is_left_only_when_the_process_that_stopped_it_has_ended(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, stopped, ended = ServedDevice.stop, threading.Event(), threading.Event()

    def stop_slowly(self: ServedDevice, seconds: float) -> None:
        stop(self, seconds)
        stopped.set()
        ended.wait()

    monkeypatch.setattr(ServedDevice, "stop", stop_slowly)
    async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
        unmount = asyncio.create_task(mount.unmount())
        await asyncio.to_thread(stopped.wait)
        await asyncio.wrap_future(ublk_kernel.when("free"))
        await asyncio.wait([unmount], timeout=0.05)
        assert not unmount.done()
        ended.set()
        await unmount
    check_end(ublk_kernel)


# Every way out


async def by_return(kernel: FakeUblk, disk: Disk) -> None:
    async with aiovblk.mounted(disk, attach="ublk"):
        kernel.write(3, b"cached")


async def by_an_error(kernel: FakeUblk, disk: Disk) -> None:
    with pytest.raises(LookupError):
        async with aiovblk.mounted(disk, attach="ublk"):
            kernel.write(3, b"cached")
            raise LookupError


async def by_cancellation(kernel: FakeUblk, disk: Disk) -> None:
    task, _ = await begin(kernel, disk)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_cancellation_again_and_again(kernel: FakeUblk, disk: Disk) -> None:
    task, _ = await begin(kernel, disk)
    await cancel_until_done(task)
    assert task.cancelled()


async def by_another_task(kernel: FakeUblk, disk: Disk) -> None:
    task, mount = await begin(kernel, disk)
    await asyncio.gather(mount.unmount(), mount.unmount(), task)


async def by_force(kernel: FakeUblk, disk: Disk) -> None:
    task, mount = await begin(kernel, disk)
    kernel.holder = True
    await mount.unmount(force=True)
    await task


async def by_being_busy(kernel: FakeUblk, disk: Disk) -> None:
    with pytest.raises(DeviceBusyError):
        async with aiovblk.mounted(disk, attach="ublk"):
            kernel.write(3, b"cached")
            kernel.holder = True


Way = Callable[[FakeUblk, Disk], Awaitable[None]]

WAYS_OUT: list[Way] = [
    by_return,
    by_an_error,
    by_cancellation,
    by_cancellation_again_and_again,
    by_another_task,
    by_force,
    by_being_busy,
]


@pytest.mark.parametrize("way", WAYS_OUT, ids=lambda way: way.__name__)
async def test_every_way_out_stores_what_is_cached_and_unmounts_once(
    ublk_kernel: FakeUblk, ublk_disk: Disk, way: Way
) -> None:
    await way(ublk_kernel, ublk_disk)
    check_stored(ublk_kernel, ublk_disk)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_end_of_the_loop_is_a_way_out(
    ublk_kernel: FakeUblk, ublk_disk: Disk, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        await begin(ublk_kernel, ublk_disk)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    check_stored(ublk_kernel, ublk_disk)


async def test_stop_from_outside_ends_the_mount_without_a_loss(
    ublk_kernel: FakeUblk, ublk_disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    task, _ = await begin(ublk_kernel, ublk_disk)
    await asyncio.wrap_future(ublk_kernel.stop_from_outside())
    await task
    assert ublk_disk.content[3 * PAGE :][:6] == b"cached"
    assert ublk_kernel.log == [*BEGUN, "write", *GONE[1:], *LAST]
    check_end(ublk_kernel)
    assert not caplog.records


async def test_device_that_is_in_use_is_not_unmounted(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
        ublk_kernel.holder = True
        with pytest.raises(DeviceBusyError):
            await mount.unmount()
        assert ublk_kernel.log == BEGUN
        assert await asyncio.wrap_future(ublk_kernel.send(Op.READ, 0, PAGE)) == bytes(PAGE)
        ublk_kernel.holder = False
        await mount.unmount()
    check_end(ublk_kernel)


# Steps that fail or hang


async def test_request_that_comes_while_the_cache_is_written_back_is_served(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    ublk_disk.hanging = {"write"}
    task, mount = await begin(ublk_kernel, ublk_disk)
    unmount = asyncio.create_task(mount.unmount())
    await asyncio.wrap_future(ublk_kernel.when("write"))
    assert await asyncio.wrap_future(ublk_kernel.send(Op.READ, 0, PAGE)) == bytes(PAGE)
    for each in (mount.unmount(force=True), unmount, task):
        with pytest.raises(Error, match="it was forced"):
            await each
    check_end(ublk_kernel)


async def test_handler_that_hangs_while_the_cache_is_written_back_times_out(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    ublk_disk.hanging = {"write"}
    with pytest.raises(Error, match=r"nothing was answered for 1 s"):
        async with aiovblk.mounted(ublk_disk, attach="ublk", unmount_timeout=1):
            ublk_kernel.write(3, b"cached")
    check_end(ublk_kernel)


async def test_handler_that_hangs_while_the_device_is_stopped_times_out(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    def dirty() -> None:
        ublk_disk.hanging = {"write"}
        ublk_kernel.write(5, b"late")

    ublk_kernel.before_stop = dirty
    with pytest.raises(Error, match=r"nothing was answered for 1 s"):
        async with aiovblk.mounted(ublk_disk, attach="ublk", unmount_timeout=1):
            pass
    assert "lost" in ublk_kernel.log
    check_end(ublk_kernel)


async def test_failed_write_back_raises(ublk_kernel: FakeUblk, ublk_disk: Disk) -> None:
    ublk_disk.failing = {"write"}
    with pytest.raises(Error, match="the kernel could not write back all data"):
        async with aiovblk.mounted(ublk_disk, attach="ublk"):
            ublk_kernel.write(3, b"cached")
    assert "STOP_DEV" in ublk_kernel.log
    check_end(ublk_kernel)


@pytest.mark.parametrize("handler", ["flush", "unmount"])
async def test_last_handler_that_fails_raises_and_the_next_one_is_called(
    ublk_kernel: FakeUblk, ublk_disk: Disk, handler: str
) -> None:
    ublk_disk.failing.add(handler)
    with pytest.raises(Error, match=rf"its {handler}\(\) failed"):
        async with aiovblk.mounted(ublk_disk, attach="ublk"):
            pass
    check_end(ublk_kernel)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that depend on the kernel alone get less time."""
    monkeypatch.setattr(unmounting, "KERNEL_TIMEOUT", 2.0)
    monkeypatch.setattr(control, "COMMAND_TIMEOUT", 2.0)


@pytest.mark.usefixtures("impatient")
async def test_stop_that_hangs_is_ended_by_the_end_of_the_queue(
    ublk_kernel: FakeUblk, ublk_disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    ublk_kernel.stuck = {"STOP_DEV"}
    with pytest.raises(Error, match=r"nothing was answered for 1 s"):
        async with aiovblk.mounted(ublk_disk, attach="ublk", unmount_timeout=1):
            pass
    assert "trying release_queue()" in caplog.text
    assert ublk_kernel.devices == {}
    assert ublk_kernel.log[-2:] == LAST


class Stubborn(Disk):
    """Its reads do not end when they are cancelled."""

    def __init__(self, kernel: FakeUblk) -> None:
        super().__init__(kernel)
        self.is_stubborn = False
        self.end = asyncio.Event()

    async def read(self, offset: int, length: int) -> bytes:
        if self.is_stubborn:
            while not self.end.is_set():
                try:
                    await self.end.wait()
                except asyncio.CancelledError:
                    continue
        return bytes(length)


@pytest.mark.usefixtures("impatient")
async def test_handlers_of_all_tags_that_ignore_their_cancellation_do_not_keep_the_device(
    ublk_kernel: FakeUblk,
) -> None:
    """The driver learns of the end of the ring by a tag that it has: it gets some back first."""
    disk = Stubborn(ublk_kernel)
    with pytest.raises(Error, match=r"nothing was answered for 1 s"):
        async with aiovblk.mounted(disk, attach="ublk", unmount_timeout=1) as mount:
            disk.is_stubborn = True
            reads = [ublk_kernel.send(Op.READ, 0, PAGE) for _ in range(128)]
            await in_flight(mount, 128)
            loop, freed = asyncio.get_running_loop(), ublk_kernel.when("free")
            freed.add_done_callback(lambda _: loop.call_soon_threadsafe(disk.end.set))
    for each in reads:
        with pytest.raises(OSError, match="the answer of the driver"):
            each.result()
    check_end(ublk_kernel)


async def test_process_without_privileges_any_more_stops_the_device_by_the_end_of_its_queue(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    async with aiovblk.mounted(ublk_disk, attach="ublk"):
        ublk_kernel.write(3, b"cached")
        ublk_kernel.failing["STOP_DEV"] = 13
    check_stored(ublk_kernel, ublk_disk)


async def test_program_that_keeps_the_node_open_is_logged(
    ublk_kernel: FakeUblk,
    ublk_disk: Disk,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unmounting, "RELEASE_TIMEOUT", 0.05)
    async with aiovblk.mounted(ublk_disk, attach="ublk"):
        program = ublk_kernel.open_for_a_program()
    assert "/dev/ublkb0 is unmounted, but cannot be mounted again" in caplog.text
    os.close(program)


# What breaks


@pytest.mark.parametrize("what", ["COMMIT", "enter"])
async def test_broken_ring_ends_the_mount_with_its_error(
    ublk_kernel: FakeUblk, ublk_disk: Disk, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AttachError, match=r"the connection broke: .*(Invalid|asked to fail)"):
        async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
            ublk_disk.gate = asyncio.get_running_loop().create_future()
            reading = asyncio.wrap_future(ublk_kernel.send(Op.READ, 0, PAGE))
            await asyncio.wrap_future(ublk_kernel.when("read"))
            if what == "enter":
                ublk_kernel.ring.errors.extend([22, 22])  # again when the queue is closed
            else:
                ublk_kernel.failing["COMMIT"] = 22
            ublk_disk.gate.set_result(None)
            with pytest.raises(OSError, match="the answer of the driver"):
                await reading
            await mount.wait()
    check_end(ublk_kernel)
    assert mount.stats.in_flight == 0
    assert not [each for each in caplog.records if each.name == "asyncio"]


async def test_kernel_short_of_memory_gets_the_results_later(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
        ublk_disk.gate = asyncio.get_running_loop().create_future()
        reads = [asyncio.wrap_future(ublk_kernel.send(Op.READ, 0, PAGE)) for _ in range(5)]
        await in_flight(mount, 5)
        ublk_kernel.ring.errors.extend([11, 16, 4])  # EAGAIN, EBUSY, EINTR
        ublk_kernel.ring.takes = 2
        drained = mount._lifecycle.connections.drained()
        ublk_disk.gate.set_result(None)
        await drained
        assert await asyncio.gather(*reads) == [bytes(PAGE)] * 5
        assert ublk_kernel.ring.takes is None
    check_end(ublk_kernel)


async def test_late_result_of_a_device_that_is_gone_goes_nowhere(
    ublk_kernel: FakeUblk, ublk_disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AttachError, match="connection was lost"):
        async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
            ublk_disk.gate = asyncio.get_running_loop().create_future()
            reading = asyncio.wrap_future(ublk_kernel.send(Op.READ, 0, PAGE))
            await asyncio.wrap_future(ublk_kernel.when("read"))
            mount._lifecycle.attachment.release_queue()  # type: ignore[attr-defined]
            with pytest.raises(OSError, match="the answer of the driver"):
                await reading
            ublk_disk.gate.set_result(None)
            await mount.wait()
    assert mount.stats.errors_by_command == {"read": 1}
    check_end(ublk_kernel)
    assert not [each for each in caplog.records if each.name == "asyncio"]
