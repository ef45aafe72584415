"""Taking over a device that has an identity and no server."""

from __future__ import annotations

import errno
import os
import time
from functools import partial
from pathlib import Path

import pytest

from aiovblk import AttachError, DeviceBusyError, atfork
from aiovblk.device import BlockDevice
from aiovblk.kernel import locks
from aiovblk.storage import MemoryDevice
from aiovblk.ublk import identities, takeover
from aiovblk.ublk.commands import ControlCommand, State

from ...support.identified_ublk import DISK, QUEUE, SIZE, is_locked, no_waiting, orphan, take_over
from ...support.kernel_tree import KernelTree
from ...support.recovering_driver import (
    RecordingWatchdog,
    RecoveringDriver,
    driver,
    recording_watchdog,
)

__all__ = ["driver", "no_waiting", "orphan", "recording_watchdog"]


@pytest.mark.parametrize("path", [None, "/dev/ublkb2"])
def test_a_device_whose_server_is_gone_is_taken_over(
    driver: RecoveringDriver,
    orphan: int,
    recording_watchdog: RecordingWatchdog,
    path: str | None,
) -> None:
    token = locks.file("ublkb2").read_text()
    attachment = take_over(path)
    assert attachment is not None
    assert attachment.index == orphan
    assert is_locked(orphan)
    assert locks.file("ublkb2").read_text() != token
    assert recording_watchdog.asked == [("watch", orphan)]
    attachment.wait_until_live(5)
    assert driver.sent == ["START_USER_RECOVERY", "END_USER_RECOVERY"]
    assert driver.devices[orphan].server == os.getpid()
    attachment.disconnect()
    attachment.close()
    assert orphan not in driver.devices


def test_a_lock_that_was_handed_over_is_used(driver: RecoveringDriver, orphan: int) -> None:
    """It need not be taken, and is closed if the device cannot be taken over."""
    take = partial(takeover.take_over_orphan, "/dev/ublkb2", identity="volume", survive=60)
    for disk in (MemoryDevice(2 * SIZE, block_size=4096), DISK):
        lock = atfork.protect_fd(locks.acquire("ublkb2"))
        if disk is not DISK:
            with pytest.raises(AttachError, match="and this device has"):
                take(disk, QUEUE, lock=lock)
        else:
            attachment = take(disk, QUEUE, lock=lock)
            assert attachment is not None
            assert attachment.lock == lock
            assert is_locked(orphan)
            attachment.detach()
        assert not is_locked(orphan)


def test_the_last_server_is_waited_for_until_the_kernel_has_parted_with_it(
    driver: RecoveringDriver, orphan: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "DEATH_TIMEOUT", 60)
    monkeypatch.setattr(time, "sleep", lambda _: driver.change(orphan, State.QUIESCED))
    driver.change(orphan, State.LIVE)
    driver.failures[ControlCommand.START_USER_RECOVERY] = [errno.EBUSY, errno.EBUSY, 0]
    attachment = take_over()
    assert attachment is not None
    assert driver.sent == ["START_USER_RECOVERY"] * 3
    attachment.abandon()


def test_a_device_that_has_a_server_is_not_taken_over(
    driver: RecoveringDriver, orphan: int, tree: KernelTree
) -> None:
    driver.change(orphan, State.LIVE)
    with pytest.raises(DeviceBusyError, match="served by a process that cannot be seen"):
        take_over()  # it has another /run
    tree.process(os.getpid(), "python")
    lock = locks.acquire("ublkb2")
    locks.write_owner(lock)
    with pytest.raises(DeviceBusyError, match=rf"served by process {os.getpid()} \(python\)"):
        take_over()
    os.close(lock)
    assert driver.sent == []


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (MemoryDevice(2 * SIZE, block_size=4096), "1048576 bytes, and this device has 2097152"),
        (MemoryDevice(SIZE, block_size=512), "4096 bytes in a block, and this device has 512"),
    ],
)
def test_a_device_that_differs_is_refused(
    driver: RecoveringDriver, orphan: int, device: BlockDevice, reason: str
) -> None:
    with pytest.raises(AttachError, match=reason) as caught:
        take_over(device=device)
    assert caught.value.path == driver.node(orphan)
    assert driver.sent == []
    assert not is_locked(orphan)


@pytest.mark.parametrize("state", [State.DEAD, None])
def test_a_device_that_is_just_unmounted_is_attached_anew(
    driver: RecoveringDriver, orphan: int, state: State | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_device = identities.lock_device

    def unmount(number: int) -> int:
        if state is None:
            driver.devices.pop(number)
        else:
            driver.change(number, state)
        return lock_device(number)

    monkeypatch.setattr(identities, "lock_device", unmount)
    assert take_over() is None
    assert not is_locked(orphan)
    assert driver.sent == []


def test_a_refusal_of_the_driver_leaves_the_device_to_another(
    driver: RecoveringDriver, orphan: int
) -> None:
    driver.failures[ControlCommand.START_USER_RECOVERY] = [errno.EINVAL]
    with pytest.raises(AttachError, match="it cannot be taken over: Invalid argument"):
        take_over()
    assert not is_locked(orphan)
    assert take_over("/dev/ublkb2") is not None


@pytest.mark.parametrize(
    ("number", "error", "reason"),
    [
        (errno.EBUSY, DeviceBusyError, "already attached, served by"),
        (errno.ENOENT, AttachError, "does not appear"),
    ],
)
def test_a_queue_that_cannot_be_opened_leaves_the_device_to_another(
    driver: RecoveringDriver,
    orphan: int,
    recording_watchdog: RecordingWatchdog,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[AttachError],
    reason: str,
) -> None:
    """EBUSY: of two successors the driver lets one open it."""
    monkeypatch.setattr(takeover, "NODE_TIMEOUT", 0)
    real = os.open

    def refuse(path: str | Path, *arguments: int) -> int:
        if path == driver.char_node(orphan):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(error, match=reason):
            take_over()
    assert recording_watchdog.asked == [("watch", orphan), ("release", orphan)]
    assert driver.devices[orphan].state == State.QUIESCED
    assert not is_locked(orphan)
