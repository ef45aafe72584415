"""The locks of devices: whom they name, and where they are not taken."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aiovblk import AttachError
from aiovblk.kernel import locks, status

from ...support.attach_machine import AttachMachine


def test_lock_names_its_owner_once_that_is_written(machine: AttachMachine) -> None:
    machine.tree.process(os.getpid(), "python")
    assert status.holder(1) is None
    lock = locks.acquire(1)
    assert status.holder(1) is None  # it may only find out that the device is taken
    locks.write_owner(lock)
    before = locks.owner_token(lock)
    assert status.holder(1) == (os.getpid(), "python")
    locks.write_owner(lock)
    assert locks.owner_token(lock) != before
    assert status.server(1) is None  # it is not attached
    machine.serve(1, thread=999)
    assert status.server(1) == (os.getpid(), "python")
    os.close(lock)
    assert status.holder(1) is None
    assert status.server(1) is None


def test_without_a_directory_for_locks_devices_are_attached_nevertheless(
    machine: AttachMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCKS", tmp_path / "no/such/place")
    assert machine.attach().index == 0
    machine.serve(0)
    assert machine.attach().index == 1


def test_lock_that_is_a_symbolic_link_is_not_followed(
    machine: AttachMachine, tmp_path: Path
) -> None:
    machine.locks.mkdir()
    (machine.locks / "nbd0.lock").symlink_to(tmp_path / "victim")
    assert machine.attach().index == 0
    assert not (tmp_path / "victim").exists()


def test_directory_for_locks_that_may_not_be_made_is_reported_as_lack_of_privilege(
    machine: AttachMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(AttachError, match="run as root"):
        machine.attach()


def test_directory_for_locks_where_others_may_write_is_refused(machine: AttachMachine) -> None:
    machine.locks.mkdir()
    machine.locks.chmod(0o777)
    with pytest.raises(AttachError, match="others than root may write there") as caught:
        machine.attach()
    assert caught.value.path == str(machine.locks)
    machine.locks.chmod(0o755)
    machine.attach()
