"""Devices whose server is gone: which users are named, what is advised, which are freed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovblk import AttachError, DeviceBusyError
from aiovblk.kernel import AttachConfig, attaching, locks, netlink, orphans, status, sysfs

from ...support.attach_machine import CONFIG
from ...support.clocks import patch_time
from ...support.kernel_tree import KernelTree

SERVER = 4242


class Machine:
    """One attached device, and which indices were disconnected by netlink."""

    def __init__(self, tree: KernelTree) -> None:
        self.tree = tree
        self.now = 0.0
        self.disconnected: list[int] = []
        self.directory = tree.device("nbd1", "43:32", sectors=8, thread=SERVER)
        tree.process(os.getpid(), "python")

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def free(self, index: int, timeout: float = 0) -> None:
        self.disconnected.append(index)
        (self.directory / "pid").unlink()
        self.tree.write(self.directory / "size", "0\n")

    def attach(self) -> object:
        return attaching.attach("/dev/nbd1", CONFIG, by_netlink=False)


@pytest.fixture
def machine(tree: KernelTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tree)
    monkeypatch.setattr(locks, "LOCKS", tmp_path / "locks")
    patch_time(monkeypatch, attaching, sleep=made.sleep, monotonic=lambda: made.now)
    monkeypatch.setattr(sysfs, "index_of_node", lambda path: int(path.removeprefix("/dev/nbd")))
    monkeypatch.setattr(netlink, "disconnect", made.free)
    taken: list[int] = []

    def attachment(index: int, path: str, lock: int, config: AttachConfig) -> object:
        taken.append(lock)
        return type("FakeAttachment", (), {"index": index})()

    monkeypatch.setattr(attaching, "IoctlAttachment", attachment)
    yield made
    for lock in taken:
        os.close(lock)


def test_process_that_finds_a_device_taken_is_not_named_as_its_server(machine: Machine) -> None:
    machine.tree.kernel_threads()
    machine.tree.process(99, "sleep", opens=("/dev/nbd1",))
    with pytest.raises(DeviceBusyError) as caught:
        machine.attach()
    assert str(caught.value) == (
        "/dev/nbd1: its server is gone, but it is still in use: opened by process 99 (sleep);"
        " `aiovblk doctor --clean` frees it, or choose another"
    )
    assert caught.value.holders == ("opened by process 99 (sleep)",)
    assert not machine.disconnected


def test_another_that_finds_it_taken_is_not_named_either(machine: Machine) -> None:
    lock = locks.acquire(1)  # it is just looking
    assert status.server(1) is None
    with pytest.raises(DeviceBusyError, match="just being attached or detached"):
        attaching.lock_index(1, "/dev/nbd1")
    os.close(lock)


def test_a_device_that_others_are_attaching_all_the_time_is_busy(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = locks.acquire(1)
    monkeypatch.setattr(orphans, "free_if_unused", lambda _: True)
    with pytest.raises(DeviceBusyError) as caught:
        machine.attach()
    assert type(caught.value) is DeviceBusyError
    assert str(caught.value) == "/dev/nbd1: the device is just being attached or detached"
    os.close(lock)


def test_a_failed_attempt_leaves_the_owner_in_the_lock(machine: Machine) -> None:
    # The watchdog of a server that is gone takes a new token for a new server.
    machine.tree.process(99, "sleep", opens=("/dev/nbd1",))
    lock = locks.acquire(1)
    locks.write_owner(lock)
    token = locks.owner_token(lock)
    os.close(lock)
    with pytest.raises(DeviceBusyError):
        machine.attach()
    assert (locks.LOCKS / "nbd1.lock").read_text().strip() == token


def test_a_refusal_of_the_kernel_clears_the_owner_in_the_lock(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "no")

    machine.free(1)
    monkeypatch.setattr(attaching, "IoctlAttachment", refuse)
    with pytest.raises(AttachError):
        machine.attach()
    assert (locks.LOCKS / "nbd1.lock").read_text() == ""


def test_a_device_without_server_and_users_is_freed(machine: Machine) -> None:
    machine.tree.kernel_threads()
    machine.attach()
    assert machine.disconnected == [1]
    assert machine.now > attaching.BUSY_RETRY_TIMEOUT  # its watchdog comes first


@pytest.mark.parametrize(
    ("connections", "identity", "reason"),
    [
        (["nbd1"], "", "it has a server that cannot be seen from here, in another container"),
        ([], "volume", "waits for another of the identity 'volume' to come back"),
        (None, "", "it is attached, and its server cannot be seen from here"),
    ],
)
def test_a_device_that_may_have_a_server_is_not_freed(
    machine: Machine, connections: list[str] | None, identity: str, reason: str
) -> None:
    machine.tree.write(machine.directory / "backend", f"{identity}\n")
    if connections is not None:
        machine.tree.kernel_threads(*connections)
    with pytest.raises(DeviceBusyError, match=reason) as caught:
        machine.attach()
    assert "`aiovblk unmount --force /dev/nbd1`" in str(caught.value)
    assert not machine.disconnected


def test_a_device_whose_server_is_just_ending_or_beginning_has_none_in_another_container(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.tree.kernel_threads("nbd1")
    monkeypatch.setattr(orphans, "is_initial", lambda kind: kind == "pid")
    with pytest.raises(DeviceBusyError, match="is just being attached or detached"):
        machine.attach()
    machine.tree.process(SERVER, "python")
    error = orphans.orphan_error(1, "/dev/nbd1")
    assert error.holders == (f"served by process {SERVER} (python)",)


def test_a_device_that_cannot_be_freed_is_reported(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(index: int) -> None:
        raise PermissionError(errno.EPERM, "no")

    machine.tree.kernel_threads()
    monkeypatch.setattr(netlink, "disconnect", refuse)
    with pytest.raises(DeviceBusyError, match="its server is gone; `aiovblk doctor --clean`"):
        machine.attach()


def test_a_device_that_is_kept_though_disconnected_is_reported(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.tree.kernel_threads()
    monkeypatch.setattr(netlink, "disconnect", machine.disconnected.append)
    monkeypatch.setattr(orphans, "FREEING_TIMEOUT", 0)
    with pytest.raises(DeviceBusyError, match="its server is gone"):
        machine.attach()
    assert machine.disconnected == [1]


def test_nothing_is_attached_after_the_attach_was_cancelled(machine: Machine) -> None:
    machine.free(1)
    with pytest.raises(AttachError) as caught:
        attaching.attach("/dev/nbd1", CONFIG, by_netlink=False, should_continue=lambda: False)
    assert caught.value.errno == errno.ECANCELED
