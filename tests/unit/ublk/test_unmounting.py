"""A ublk device of another process is unmounted: claimed, written back, stopped."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from aiovblk import AttachError, DeviceBusyError, atfork
from aiovblk.ublk import stopping, unmount, unmounting
from aiovblk.ublk.commands import RECOVERY, Feature, State

from ...support.ublk_tree import UblkTree, ublk_tree

__all__ = ["ublk_tree"]

PATH = "/dev/ublkb0"

Child = Callable[..., None]


@pytest.fixture
def driver(ublk_tree: UblkTree, monkeypatch: pytest.MonkeyPatch) -> UblkTree:
    """One live device; what the child process does is done by this one."""

    def open_protected(path: str, flags: int = 0) -> int:
        ublk_tree.log.append("claim" if flags & os.O_EXCL else "open")
        return atfork.protect_fd(os.open(os.devnull, os.O_RDONLY))

    def run_in_child(module: str, path: str, force: str, *, timeout: float) -> None:
        (unmounting.stop_by_force if force else unmounting.stop_gracefully)(path)

    monkeypatch.setattr(atfork, "open_protected", open_protected)
    monkeypatch.setattr(unmounting, "sync", lambda disk, fd: ublk_tree.log.append(f"sync {disk}"))
    monkeypatch.setattr(unmounting, "run_in_child", run_in_child)
    monkeypatch.setattr(unmounting, "RELEASE_TIMEOUT", 0.0)
    ublk_tree.add(0)
    ublk_tree.tree.process(77, "python")
    return ublk_tree


def refused(path: str = PATH, *, force: bool = False) -> str:
    with pytest.raises(AttachError) as caught:
        unmount(path, force=force)
    return str(caught.value)


def test_device_is_claimed_and_written_back_before_it_is_stopped(driver: UblkTree) -> None:
    unmount(PATH)
    assert driver.log == ["claim", "sync ublkb0", "stop 0", "delete 0"]


def test_device_that_its_server_leaves_is_removed(driver: UblkTree) -> None:
    driver.server_removes = False
    unmount(PATH)
    assert driver.log[-2:] == ["stop 0", "delete 0"]


def test_surviving_device_is_stopped_when_it_is_closed_or_has_been_written_back_just_before(
    driver: UblkTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver would discard what is cached; and the claim of this process counts as a use."""
    monkeypatch.setattr(stopping, "UNUSED_TIMEOUT", 0.0)
    close_protected = atfork.close_protected

    def close(descriptor: int) -> None:
        driver.log.append("close")
        close_protected(descriptor)

    monkeypatch.setattr(atfork, "close_protected", close)
    for number in (1, 2):
        driver.add(number, flags=Feature.USER_COPY | RECOVERY)
    unmount("/dev/ublkb1")
    assert driver.log == ["claim", "sync ublkb1", "close", "try 1", "stop 1", "delete 1"]
    driver.log.clear()
    driver.is_open = True
    unmount("/dev/ublkb2")
    written_back = ["claim", "sync ublkb2", "close", "try 2", "open", "sync ublkb2", "close"]
    assert driver.log == [*written_back, "stop 2", "delete 2"]


def test_device_in_use_is_left_alone_and_its_user_named(
    driver: UblkTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claimed(path: str, flags: int = 0) -> int:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(atfork, "open_protected", claimed)
    driver.tree.mount(77, "259:0", "/mnt", PATH)
    with pytest.raises(DeviceBusyError, match="the device is in use: mounted at /mnt"):
        unmount(PATH)
    assert driver.log == []


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENXIO])
def test_device_without_a_node_is_no_device_that_cannot_be_written_back(
    driver: UblkTree, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def missing(path: str, flags: int = 0) -> int:
        raise OSError(number, os.strerror(number))

    def stopped(path: str, flags: int = 0) -> int:
        driver.tree.remove("ublkb0", "259:0")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atfork, "open_protected", missing)
    assert "has no node here: unmount it where it was mounted" in refused()
    monkeypatch.setattr(atfork, "open_protected", stopped)
    assert "not mounted" in refused()
    assert driver.log == []


def test_exported_device_is_in_use_although_it_can_be_claimed(driver: UblkTree) -> None:
    loop = driver.tree.block / "loop0/loop/backing_file"
    driver.tree.write(loop, f"{PATH}\n")
    assert "held by loop0" in refused()
    assert driver.log == ["claim"]


def test_device_that_cannot_be_written_back_stays(
    driver: UblkTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(disk: str, fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(unmounting, "sync", sync)
    assert "not all data can be written back (Input/output error)" in refused()
    assert driver.log == ["claim"]
    unmount(PATH, force=True)
    assert driver.log[1:] == ["open", "stop 0", "delete 0"]


def test_force_stops_a_device_in_use_and_names_the_file_system_that_stays(
    driver: UblkTree,
) -> None:
    driver.tree.mount(77, "259:0", "/mnt", PATH)
    with pytest.raises(DeviceBusyError, match="until its file system is unmounted"):
        unmount(PATH, force=True)
    assert driver.log == ["open", "sync ublkb0", "stop 0", "delete 0"]


@pytest.mark.parametrize("force", [False, True])
def test_server_that_does_not_answer_is_named_with_what_ends_it(
    driver: UblkTree, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    def hanging(module: str, path: str, force: str, *, timeout: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(unmounting, "run_in_child", hanging)
    assert refused(force=force) == (
        "/dev/ublkb0: not unmounted after 30 s: its server, process 77 (python), does not answer"
        " what is written back; `kill -9 77` frees this device and all others that it serves, and"
        " what is not written yet is lost"
    )


@pytest.mark.parametrize("state", ["T", "t"])
def test_server_that_is_stopped_is_to_be_continued_and_not_killed(
    driver: UblkTree, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    def hanging(module: str, path: str, force: str, *, timeout: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(unmounting, "run_in_child", hanging)
    driver.tree.write(driver.tree.proc / "77/stat", f"77 (python) {state} 1 1 1 0 -1 0 0 0\n")
    assert refused() == (
        "/dev/ublkb0: not unmounted after 30 s: its server, process 77 (python), is stopped:"
        " continue it by `kill -CONT 77`, and do not kill it"
    )


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_device_of_another_user_is_refused(driver: UblkTree, number: int) -> None:
    driver.stop_error = OSError(number, "no")
    expected = "/dev/ublkb0: unmounting takes root, or the user who has mounted it"
    assert refused() == expected
    driver.refusal = OSError(number, "no")
    assert refused() == expected


def test_what_is_not_there_is_not_mounted(driver: UblkTree) -> None:
    assert refused("/dev/ublkb1") == "/dev/ublkb1: not mounted"
    assert "ublk devices are called" in refused("/dev/nbd0")
    driver.refusal = OSError(errno.ENODEV, "gone meanwhile")
    assert refused() == "/dev/ublkb0: not mounted"


def test_device_that_is_gone_meanwhile_is_unmounted(driver: UblkTree) -> None:
    driver.stop_error = OSError(errno.ENODEV, "gone meanwhile")
    unmount(PATH)
    assert driver.log[-1] == "stop 0"


# Without a server


def test_dead_device_is_removed(driver: UblkTree) -> None:
    driver.add(1, state=State.DEAD, server=-1)
    unmount("/dev/ublkb1")
    assert driver.log == ["delete 1"]


def test_device_that_is_about_to_start_is_left_alone(driver: UblkTree) -> None:
    driver.add(1, state=State.DEAD, server=77)
    assert refused("/dev/ublkb1") == "/dev/ublkb1: the device is just being attached"
    assert driver.log == []


def test_dead_device_that_the_driver_keeps_is_an_error(driver: UblkTree) -> None:
    driver.add(1, state=State.DEAD, server=-1)
    driver.delete_error = OSError(errno.EBUSY, "no")
    assert "the driver does not remove the device" in refused("/dev/ublkb1")


def test_device_that_waits_for_another_server_takes_force_and_loses_what_is_cached(
    driver: UblkTree,
) -> None:
    driver.add(1, state=State.QUIESCED, server=-1, flags=Feature.USER_RECOVERY)
    assert "it waits for another server; use --force" in refused("/dev/ublkb1")
    assert driver.log == []
    unmount("/dev/ublkb1", force=True)
    assert driver.log == ["stop 1", "delete 1"]


# The child process


@pytest.mark.parametrize(("force", "steps"), [("", 4), ("force", 4)])
def test_child_process_prints_the_number_of_its_error(
    driver: UblkTree, capsys: pytest.CaptureFixture[str], force: str, steps: int
) -> None:
    unmounting.main(PATH, force)
    assert capsys.readouterr().out == "0\n"
    assert len(driver.log) == steps
    driver.add(1)
    driver.stop_error = OSError(errno.EPERM, "no")
    unmounting.main("/dev/ublkb1", force)
    assert capsys.readouterr().out == f"{errno.EPERM}\n"
