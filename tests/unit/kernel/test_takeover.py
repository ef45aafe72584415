"""Which device is taken over, when its server is gone or on its way out, and which is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from aiovblk import AttachError, DeviceBusyError
from aiovblk.kernel import AttachConfig, locks, takeover

from ...support.attach_machine import CONFIG, AttachMachine, FakeAttachment, FakeNetlink

VOLUME = replace(CONFIG, survive=60, identity="volume")


@pytest.fixture
def orphan(machine: AttachMachine, by_netlink: FakeNetlink) -> Path:
    """/dev/nbd2, attached with the identity ``volume``, without a server."""
    machine.serve(2, thread=999)
    directory = machine.tree.block / "nbd2"
    machine.tree.write(directory / "backend", "volume\n")
    machine.tree.write(directory / "size", "8\n")
    machine.tree.write(directory / "queue/logical_block_size", "4096\n")
    return directory


def take_over(path: str | None = None, config: AttachConfig = VOLUME) -> FakeAttachment | None:
    return cast(FakeAttachment | None, takeover.take_over_orphan(path, config))


@pytest.mark.parametrize("path", [None, "/dev/nbd2"])
def test_a_device_whose_server_is_gone_is_taken_over(
    machine: AttachMachine, orphan: Path, path: str | None
) -> None:
    attachment = take_over(path)
    assert attachment is not None
    assert (attachment.index, attachment.path) == (2, "/dev/nbd2")
    assert machine.is_locked(2)
    os.close(attachment.lock)


def test_nothing_is_taken_over_without_a_device_of_the_identity(
    machine: AttachMachine, orphan: Path
) -> None:
    assert take_over(config=replace(VOLUME, identity="another")) is None
    with pytest.raises(DeviceBusyError, match="'volume' is attached at /dev/nbd2; mount it there"):
        take_over("/dev/nbd1")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (replace(VOLUME, blocks=2), "attached with 4096 bytes, and this device has 8192"),
        (replace(VOLUME, block_size=512, blocks=8), "4096 bytes in a block, .* has 512"),
        (replace(VOLUME, flags=0b11), "attached for writing, and this device cannot be written"),
    ],
)
def test_a_device_that_differs_is_refused(
    machine: AttachMachine, orphan: Path, config: AttachConfig, reason: str
) -> None:
    with pytest.raises(AttachError, match=reason) as caught:
        take_over(config=config)
    assert caught.value.path == "/dev/nbd2"
    assert not machine.is_locked(2)


def test_a_device_that_has_a_server_is_not_taken_over(machine: AttachMachine, orphan: Path) -> None:
    machine.tree.kernel_threads("nbd2")
    with pytest.raises(DeviceBusyError, match="still has a server"):
        take_over()
    assert not machine.is_locked(2)
    lock = locks.acquire(2)
    locks.write_owner(lock)
    machine.tree.process(os.getpid(), "python")
    with pytest.raises(DeviceBusyError, match=rf"served by process {os.getpid()} \(python\)"):
        take_over()
    os.close(lock)


def test_a_server_that_is_shutting_down_is_waited_for(machine: AttachMachine, orphan: Path) -> None:
    lock = locks.acquire(2)
    locks.write_owner(lock)
    machine.while_waiting = lambda: os.close(lock) if machine.is_locked(2) else None
    attachment = take_over()
    assert attachment is not None
    assert machine.now > 1000
    os.close(attachment.lock)
