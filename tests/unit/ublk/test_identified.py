"""Devices with an identity: made, found, stopped, and left to a successor."""

from __future__ import annotations

import errno
import os

import pytest

from aiovblk import AttachError, DeviceBusyError
from aiovblk.errors import UblkUnavailableError
from aiovblk.kernel import locks
from aiovblk.ublk import attaching, identified, identities, stopping
from aiovblk.ublk.commands import RECOVERY, ControlCommand, Feature, State
from aiovblk.ublk.identified import IdentifiedAttachment
from aiovblk.ublk.identities import mark_of

from ...support.identified_ublk import (
    DISK,
    QUEUE,
    info_of,
    is_locked,
    no_waiting,
    orphan,
    take_over,
)
from ...support.recovering_driver import (
    RecordingWatchdog,
    RecoveringDriver,
    driver,
    opened,
    recording_watchdog,
)

__all__ = ["driver", "no_waiting", "orphan", "recording_watchdog"]


def attach(
    path: str | None = None, identity: str | None = "volume", survive: float = 60
) -> IdentifiedAttachment:
    made = attaching.attach(path, DISK, QUEUE, identity=identity, survive=survive)
    assert isinstance(made, IdentifiedAttachment)
    return made


# Identities


def test_the_mark_of_an_identity_stays_the_same() -> None:
    """The server that comes next may be another version."""
    assert mark_of("volume") == 0xD1DEA05B4F9215A1
    assert mark_of("volume2") != mark_of("volume")
    assert mark_of("volume2") >> 63 == 1


def test_a_device_is_found_by_its_identity(driver: RecoveringDriver, orphan: int) -> None:
    found = identities.find_by_identity(None, "volume")
    assert found is not None
    assert found.number == orphan
    assert identities.find_by_identity("/dev/ublkb2", "volume") == found
    assert identities.find_by_identity(None, "another") is None
    with pytest.raises(DeviceBusyError, match=r"'volume' is attached at .*ublkb2; mount it there"):
        identities.find_by_identity("/dev/ublkb1", "volume")
    driver.change(orphan, State.DEAD)
    assert identities.find_by_identity(None, "volume") is None


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EPERM, errno.EACCES, errno.ENOENT])
def test_devices_that_cannot_have_the_identity_are_passed_over(
    driver: RecoveringDriver, orphan: int, number: int
) -> None:
    driver.failures[ControlCommand.GET_DEV_INFO2] = [number]  # of the first, another program's
    found = identities.find_by_identity(None, "volume")
    assert found is not None
    assert found.number == orphan


def test_no_second_device_is_made_where_the_driver_does_not_say_which_there_are(
    driver: RecoveringDriver, orphan: int
) -> None:
    failures = driver.failures[ControlCommand.GET_DEV_INFO2] = [0, errno.ENOMEM]
    with pytest.raises(AttachError, match="whether it has this identity cannot be found out") as of:
        take_over()
    assert (of.value.errno, failures) == (errno.ENOMEM, [])
    driver.failures[ControlCommand.GET_DEV_INFO2] = [0, errno.ETIMEDOUT]
    with pytest.raises(AttachError, match="cannot be found out"):
        attach("/dev/ublkb5")
    assert driver.sent == ["ADD_DEV", "SET_PARAMS", "DEL_DEV_ASYNC"]


# Attaching


def test_a_device_that_survives_is_made_so_and_watched(
    driver: RecoveringDriver, recording_watchdog: RecordingWatchdog
) -> None:
    attachment = attach("/dev/ublkb5")
    info = driver.devices[5]
    assert RECOVERY in info.flags
    assert info.mark == mark_of("volume")
    assert recording_watchdog.asked == [("watch", 5)]
    assert recording_watchdog.survive == 60
    assert recording_watchdog.owner_token == locks.file("ublkb5").read_text().strip()
    assert is_locked(5)
    attachment.wait_until_live(5)
    assert driver.sent == ["ADD_DEV", "SET_PARAMS", "START_DEV"]
    attachment.disconnect()
    attachment.close()
    attachment.close()
    assert driver.devices == {}
    assert set(recording_watchdog.asked[1:]) == {("forget", 5)}
    assert not is_locked(5)


def test_an_identity_alone_takes_neither_recovery_nor_a_watchdog(
    driver: RecoveringDriver, recording_watchdog: RecordingWatchdog
) -> None:
    driver.features &= ~Feature.SAFE_STOP_DEV  # not even a driver in which recovery is sound
    attachment = attach(survive=0)
    assert not driver.devices[0].flags & RECOVERY
    assert recording_watchdog.asked == []
    with pytest.raises(DeviceBusyError, match=r"the identity has just been attached at .*ublkb0"):
        attach(survive=0)
    attachment.wait_until_live(5)
    attachment.disconnect()
    assert driver.sent[-1] == "STOP_DEV"
    attachment.abandon()
    assert driver.devices == {}


def test_recovery_that_is_unsound_is_refused(driver: RecoveringDriver) -> None:
    driver.features &= ~Feature.SAFE_STOP_DEV
    with pytest.raises(UblkUnavailableError, match="may hang all block devices of the machine"):
        attach()
    assert driver.sent == []


def test_recovery_that_is_not_granted_is_refused(
    driver: RecoveringDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.grants = ~RECOVERY
    with pytest.raises(AttachError, match="does not let this process's devices outlive"):
        attach()
    assert driver.sent[-1] == "DEL_DEV_ASYNC"
    assert driver.devices == {}
    assert not is_locked(0)
    monkeypatch.setattr(attaching, "is_privileged", lambda: False)
    with pytest.raises(AttachError, match="identity takes CAP_SYS_ADMIN") as caught:
        attach()
    assert caught.value.errno == errno.EPERM


@pytest.mark.parametrize(
    ("state", "locked", "refused"),
    [(State.LIVE, False, True), (State.DEAD, True, True), (State.DEAD, False, False)],
)
def test_of_two_that_attach_the_same_identity_one_gives_way(
    driver: RecoveringDriver, state: State, locked: bool, refused: bool
) -> None:
    """The one that is seen is started, or about to be; else it is what a dead server has left."""
    driver.make(info_of(7, state))
    lock = locks.acquire("ublkb7") if locked else -1
    try:
        if refused:
            with pytest.raises(DeviceBusyError, match=r"just been attached at .*ublkb7"):
                attach("/dev/ublkb5")
            assert list(driver.devices) == [7]
            assert not is_locked(5)
        else:
            attach("/dev/ublkb5").undo()
    finally:
        if locked:
            os.close(lock)


def test_a_lock_that_another_process_has_is_respected(driver: RecoveringDriver) -> None:
    lock = locks.acquire("ublkb5")
    try:
        with pytest.raises(DeviceBusyError, match="already attached, served by a process that"):
            attach("/dev/ublkb5")
    finally:
        os.close(lock)
    assert driver.devices == {}


# Stopping


def test_the_own_claim_does_not_keep_a_device_from_being_stopped_safely(
    driver: RecoveringDriver,
) -> None:
    attachment = attach()
    attachment.wait_until_live(5)
    attachment.claim_exclusively()
    attachment.disconnect()
    assert driver.sent[-1] == "TRY_STOP_DEV"
    attachment.close()


def test_a_device_that_is_being_closed_is_stopped_safely(
    driver: RecoveringDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "UNUSED_TIMEOUT", 60)
    attachment = attach()
    attachment.wait_until_live(5)
    driver.failures[ControlCommand.TRY_STOP_DEV] = [errno.EBUSY, errno.EBUSY, 0]
    attachment.disconnect()
    assert driver.sent[-3:] == ["TRY_STOP_DEV"] * 3
    attachment.close()


def test_what_is_cached_is_written_back_before_a_device_in_use_is_stopped(
    driver: RecoveringDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(attachment: IdentifiedAttachment) -> None:
        driver.sent.append("sync")
        raise OSError(errno.EIO, "cannot be written")

    monkeypatch.setattr(IdentifiedAttachment, "sync", sync)
    attachment = attach()
    attachment.wait_until_live(5)
    with opened(driver.node(0)):
        attachment.disconnect()
    assert driver.sent[-3:] == ["TRY_STOP_DEV", "sync", "STOP_DEV"]
    attachment.close()


def test_a_device_that_another_has_stopped_is_stopped(driver: RecoveringDriver) -> None:
    attachment = attach()
    driver.failures[ControlCommand.TRY_STOP_DEV] = [errno.ENODEV, errno.EPERM]
    attachment.disconnect()
    with pytest.raises(PermissionError):
        attachment.disconnect()
    assert driver.sent[-1] == "TRY_STOP_DEV"
    attachment.undo()


def test_all_is_synced_when_the_node_of_a_surviving_device_cannot_be_opened(
    driver: RecoveringDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[None] = []
    monkeypatch.setattr(identified, "sync_all_in_child", lambda: synced.append(None))
    attachment = attach()
    attachment.sync()
    assert len(synced) == 1
    attachment.undo()


def test_an_abandoned_device_is_left_to_a_successor(
    driver: RecoveringDriver, recording_watchdog: RecordingWatchdog
) -> None:
    attachment = attach()
    attachment.wait_until_live(5)
    attachment.abandon()
    attachment.abandon()
    assert attachment.ended.done()
    assert driver.devices[0].state == State.LIVE  # the kernel sees by itself that it is closed
    assert recording_watchdog.asked == [("watch", 0), ("release", 0)]
    assert not is_locked(0)
