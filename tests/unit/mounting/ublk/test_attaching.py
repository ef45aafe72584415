"""Attaching by ublk: what fails, hangs or is cancelled leaves nothing, and DEL_DEV was sent."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

import aiovblk
from aiovblk import AttachError, ublk
from aiovblk.kernel import RequestQueue
from aiovblk.mounting import lifecycle
from aiovblk.mounting.ublk import attaching
from aiovblk.mounting.ublk.dispatcher import UblkDispatcher
from aiovblk.ublk import UblkAttachment, attachment
from aiovblk.ublk import attaching as driver_attaching

from ....support.clocks import patch_time
from ....support.fake_ublk import FakeUblk
from ....support.noting_disk import LAST, Disk
from ....support.polling import cancel_until_done
from ....support.ublk_disk import BEGUN, GONE, check_end

NEVER_STARTED = ["STOP_DEV", "the queue is closed", "DEL_DEV_ASYNC", "free"]


async def mount(disk: Disk, **options: Any) -> None:
    await aiovblk.mount(disk, attach="ublk", **options)


def check_nothing_left(kernel: FakeUblk) -> None:
    assert kernel.leaks() == [], kernel.leaks()
    assert kernel.log.count("DEL_DEV_ASYNC") == kernel.log.count("ADD_DEV")


async def test_path_and_settings(ublk_kernel: FakeUblk, ublk_disk: Disk) -> None:
    async with aiovblk.mounted(
        ublk_disk,
        "/dev/ublkb5",
        attach="ublk",
        queue=RequestQueue(max_sectors_kb=256, read_ahead_kb=64),
    ) as live:
        assert (live.path, live.index) == ("/dev/ublkb5", 5)
        device = ublk_kernel.devices[5]
        assert device.size == ublk_disk.size
        assert device.fields[4] == 256 << 10
        assert device.setting["scheduler"] == "none"
        assert device.setting["max_sectors_kb"] == "256"
        assert device.setting["read_ahead_kb"] == "64"
    check_end(ublk_kernel)


async def test_partitions_of_an_ordinary_users_device_are_refused(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ublk, "is_privileged", lambda: False)
    with pytest.raises(AttachError, match="leave partitions out") as caught:
        await mount(ublk_disk, partitions=True)
    assert caught.value.errno == errno.EPERM
    assert ublk_kernel.log == []


async def test_driver_is_given_no_more_than_it_has_granted(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    ublk_kernel.features = 0x17E  # no USER_COPY: a buffer for each tag
    queue = RequestQueue(max_sectors_kb=2048)
    async with aiovblk.mounted(ublk_disk, attach="ublk", queue=queue):
        assert ublk_kernel.device.setting["max_sectors_kb"] == "512"
    check_end(ublk_kernel)


async def test_ordinary_user_sets_nothing_by_default(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_attaching, "is_privileged", lambda: False)
    async with aiovblk.mounted(ublk_disk, attach="ublk") as live:
        assert ublk_kernel.device.setting["read_ahead_kb"] == "128"
        assert live.stats.reads == 0
    assert ublk_kernel.log == [
        *BEGUN, "claim", "sync", "flush", *GONE[:2], "DEL_DEV", "free", *LAST,
    ]  # fmt: skip
    check_end(ublk_kernel)


async def test_node_that_udev_gives_to_its_user_late_is_waited_for(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        for device in ublk_kernel.devices.values():
            device.keeps_node = False

    patch_time(monkeypatch, attachment, sleep=pause)
    monkeypatch.setattr(driver_attaching, "is_privileged", lambda: False)
    ublk_kernel.keeps_node = True
    async with aiovblk.mounted(ublk_disk, attach="ublk"):
        assert waits
    check_end(ublk_kernel)


@pytest.mark.parametrize("is_root", [True, False])
async def test_node_that_stays_roots_is_an_error_for_its_user_alone(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch, is_root: bool
) -> None:
    monkeypatch.setattr("aiovblk.ublk.attachment.OWNER_TIMEOUT", 0.01)
    monkeypatch.setattr(driver_attaching, "is_privileged", lambda: is_root)
    ublk_kernel.keeps_node = True
    if is_root:
        async with aiovblk.mounted(ublk_disk, attach="ublk"):
            pass
    else:
        words = r"/dev/ublkb0 does not become this user's .*an administrator has to install udev"
        with pytest.raises(AttachError, match=words):
            await mount(ublk_disk)
    check_end(ublk_kernel)


async def test_scheduler_that_the_kernel_does_not_have_is_an_error(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(disk: object, name: str, value: str) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("aiovblk.kernel.request_queue._write", refuse)
    with pytest.raises(AttachError, match="the kernel refuses scheduler=bfq; it knows mq-deadline"):
        await mount(ublk_disk, queue=RequestQueue(scheduler="bfq"))
    check_nothing_left(ublk_kernel)


@pytest.mark.parametrize("command", ["ADD_DEV", "SET_PARAMS"])
async def test_command_that_is_refused(
    ublk_kernel: FakeUblk, ublk_disk: Disk, command: str
) -> None:
    ublk_kernel.failing[command] = errno.EINVAL
    with pytest.raises(AttachError, match=f"{command}: Invalid argument"):
        await mount(ublk_disk)
    assert ublk_kernel.leaks() == []
    assert ublk_kernel.log.count("DEL_DEV_ASYNC") == (command == "SET_PARAMS")
    assert not set(LAST) & set(ublk_kernel.log)


@pytest.mark.parametrize("fault", ["FETCH", "io_uring_enter", "add_reader", "a bug"])
async def test_queue_that_cannot_be_served_leaves_nothing(
    ublk_kernel: FakeUblk, ublk_disk: Disk, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: tuple[type[Exception], str] = (AttachError, "its queue cannot be served")
    if fault == "FETCH":
        ublk_kernel.failing["FETCH"] = errno.EBUSY
    elif fault == "io_uring_enter":
        monkeypatch.setattr(UblkAttachment, "open_queue", _refuse)
    elif fault == "add_reader":
        attach = UblkDispatcher.attach_queue

        def attach_queue(self: UblkDispatcher, queue: Any) -> None:
            attach(self, queue)
            raise OSError(errno.ENOSPC, "epoll_ctl: too many watches")

        monkeypatch.setattr(UblkDispatcher, "attach_queue", attach_queue)
    else:
        expected = (LookupError, "a bug")

        def fail(*_: object) -> None:
            raise LookupError("a bug")

        monkeypatch.setattr(attaching.UblkAttachSequence, "serve", fail)
    with pytest.raises(expected[0], match=expected[1]):
        await mount(ublk_disk)
    check_nothing_left(ublk_kernel)
    assert "START_DEV" not in ublk_kernel.log


def _refuse(self: UblkAttachment) -> None:
    raise OSError(errno.ENOMEM, "io_uring_setup: Cannot allocate memory")


# The start


async def test_start_that_is_refused(ublk_kernel: FakeUblk, ublk_disk: Disk) -> None:
    ublk_kernel.failing["START_DEV"] = errno.EINVAL
    with pytest.raises(AttachError, match="did not come alive: START_DEV: Invalid argument"):
        await mount(ublk_disk)
    assert ublk_kernel.log == ["ADD_DEV", "SET_PARAMS", "START_DEV", *NEVER_STARTED, *LAST]
    check_end(ublk_kernel)


async def test_start_whose_first_read_hangs(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "ATTACH_TIMEOUT", 2.0)
    ublk_disk.gate = asyncio.get_running_loop().create_future()
    with pytest.raises(AttachError, match="did not come alive"):
        await mount(ublk_disk)
    assert ublk_kernel.log[:4] == ["ADD_DEV", "SET_PARAMS", "START_DEV", "read"]
    check_end(ublk_kernel)


async def test_start_whose_first_read_fails_is_a_start(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    ublk_disk.gate = asyncio.get_running_loop().create_future()
    ublk_disk.gate.set_exception(OSError(errno.EIO, "a bad disk"))
    async with aiovblk.mounted(ublk_disk, attach="ublk") as live:
        assert live.stats.errors_by_command == {"read": 1}
    check_end(ublk_kernel)


async def test_node_that_does_not_appear(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = UblkAttachment._wait_for_node
    monkeypatch.setattr(UblkAttachment, "_wait_for_node", lambda self, _: wait(self, 0))
    ublk_kernel.hides_node = True
    with pytest.raises(
        AttachError, match=r"/dev/ublkb0 does not appear; .*`mknod /dev/ublkb0 b 259"
    ):
        await mount(ublk_disk)
    check_end(ublk_kernel)


async def test_driver_that_does_not_answer(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attaching, "ATTACH_TIMEOUT", 0.05)
    ublk_kernel.stuck = {"ADD_DEV"}
    with pytest.raises(AttachError, match=r"ublk driver did not answer in 0\.05 s"):
        await mount(ublk_disk)
    # The device that comes too late is deleted.
    ublk_kernel.free()
    await asyncio.wrap_future(ublk_kernel.when("DEL_DEV_ASYNC"))
    check_nothing_left(ublk_kernel)
    assert "START_DEV" not in ublk_kernel.log


# Cancellation


@pytest.mark.parametrize("command", ["GET_FEATURES", "ADD_DEV", "SET_PARAMS"])
@pytest.mark.parametrize("in_time", [True, False])
async def test_cancelled_while_a_command_hangs(
    ublk_kernel: FakeUblk, ublk_disk: Disk, command: str, in_time: bool
) -> None:
    ublk_kernel.stuck = {command}
    timeout = 60 if in_time else 0.05
    task = asyncio.create_task(mount(ublk_disk, unmount_timeout=timeout))
    await asyncio.wrap_future(ublk_kernel.when(f"{command} hangs"))
    task.cancel()
    if in_time:
        await asyncio.sleep(0)
        ublk_kernel.free()
    with pytest.raises(asyncio.CancelledError):
        await task
    if not in_time:
        ublk_kernel.free()
    await asyncio.wrap_future(ublk_kernel.when("free"))
    check_nothing_left(ublk_kernel)


async def test_cancelled_while_the_start_reads(
    ublk_kernel: FakeUblk, ublk_disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """STOP_DEV waits until the read is answered, as everywhere in an unmount."""
    ublk_disk.gate = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(mount(ublk_disk))
    await asyncio.wrap_future(ublk_kernel.when("read"))
    task.cancel()
    await asyncio.wait([task], timeout=0.05)
    assert not task.done()
    ublk_disk.gate.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await task
    check_end(ublk_kernel)
    assert not caplog.records


async def test_cancelled_before_the_start_is_sent_does_not_start(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is started when it was stopped has a queue that the driver has forgotten."""
    is_waiting = asyncio.Event()
    loop = asyncio.get_running_loop()
    wait = UblkAttachment.wait_until_live

    def wait_late(self: UblkAttachment, seconds: float) -> None:
        loop.call_soon_threadsafe(is_waiting.set)
        ublk_kernel.when("free").result()
        wait(self, seconds)

    monkeypatch.setattr(UblkAttachment, "wait_until_live", wait_late)
    task = asyncio.create_task(mount(ublk_disk))
    await is_waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ublk_kernel.log == ["ADD_DEV", "SET_PARAMS", *NEVER_STARTED, *LAST]
    check_end(ublk_kernel)


async def test_cancelled_again_and_again_while_it_attaches(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    task = asyncio.create_task(mount(ublk_disk))
    await asyncio.wrap_future(ublk_kernel.when("ADD_DEV"))
    await cancel_until_done(task)
    check_nothing_left(ublk_kernel)


async def test_bug_before_the_device_is_live(
    ublk_kernel: FakeUblk, ublk_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(lifecycle, "wait_for_partitions", fail)
    with pytest.raises(LookupError, match="a bug"):
        await mount(ublk_disk, partitions=True)
    check_end(ublk_kernel)
