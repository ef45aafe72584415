"""Which device is attached, and what is reported when none can be."""

from __future__ import annotations

import errno
import fcntl
from dataclasses import replace

import pytest

from aiovblk import AttachError, DeviceBusyError, NBDUnavailableError
from aiovblk.kernel import AttachConfig, attaching, netlink, sysfs

from ...support.attach_machine import CONFIG, AttachMachine, FakeNetlink

VOLUME = replace(CONFIG, survive=60, identity="volume")


def test_first_free_device_is_taken_and_locked(machine: AttachMachine) -> None:
    attachment = machine.attach()
    assert (attachment.index, attachment.path, attachment.closed) == (0, "/dev/nbd0", False)
    assert machine.is_locked(0)


def test_named_device_is_taken(machine: AttachMachine) -> None:
    assert machine.attach("/dev/nbd2").index == 2


def test_attached_devices_are_skipped(machine: AttachMachine) -> None:
    machine.serve(0)
    machine.tree.write(machine.tree.block / "nbd1/size", "8\n")
    assert machine.attach().index == 2
    assert [attachment.index for attachment in machine.attachments] == [
        2
    ]  # the others were not even opened


def test_locked_devices_are_skipped(machine: AttachMachine) -> None:
    assert [machine.attach().index for _ in range(4)] == [0, 1, 2, 3]


def test_device_that_another_process_configures_first_is_skipped(machine: AttachMachine) -> None:
    machine.when_configured[0] = OSError(errno.EBUSY, "NBD_SET_SOCK: busy")
    machine.when_opened[1] = OSError(errno.EBUSY, "open: busy")
    assert machine.attach().index == 2
    assert machine.attachments[0].closed
    assert not machine.is_locked(0)
    assert not machine.is_locked(1)


def test_all_devices_in_use_are_reported_with_their_number(machine: AttachMachine) -> None:
    for index in range(4):
        machine.serve(index)
    with pytest.raises(NBDUnavailableError, match="all 4 NBD devices are in use") as caught:
        machine.attach()
    assert caught.value.errno == errno.EBUSY
    assert "nbds_max=8" in str(caught.value)


def test_device_without_a_node_is_passed_over_for_one_with_a_node(machine: AttachMachine) -> None:
    machine.when_opened[0] = FileNotFoundError(errno.ENOENT, "no node")
    machine.serve(1)
    assert machine.attach().index == 2


def test_no_node_at_all_is_reported_with_its_remedy(machine: AttachMachine) -> None:
    for index in range(4):
        machine.when_opened[index] = FileNotFoundError(errno.ENOENT, "no node")
    with pytest.raises(NBDUnavailableError) as caught:
        machine.attach()
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, "/dev/nbd0")
    assert str(caught.value).startswith("/dev/nbd0: no such node; in a container, make it with")
    assert not machine.is_locked(0)


def test_served_device_is_reported_with_its_server(machine: AttachMachine) -> None:
    machine.serve(1)
    with pytest.raises(DeviceBusyError) as caught:
        machine.attach("/dev/nbd1")
    assert caught.value.holders == ("served by process 4242 (fio)",)
    assert str(caught.value) == (
        "/dev/nbd1: already attached, served by process 4242 (fio); choose another or unmount it"
    )
    assert machine.now == 1000  # at once


def test_device_that_is_being_detached_is_waited_for(machine: AttachMachine) -> None:
    machine.serve(1, thread=999)

    def detach() -> None:
        if machine.now > 1000.5:
            machine.detach(1)

    machine.while_waiting = detach
    assert machine.attach("/dev/nbd1").index == 1
    assert 1000.5 < machine.now < 1000.6


def test_device_that_is_not_detached_is_reported_as_busy(machine: AttachMachine) -> None:
    machine.serve(1, thread=999)
    machine.tree.process(77, "blkid", opens=("/dev/nbd1",))
    with pytest.raises(DeviceBusyError) as caught:
        machine.attach("/dev/nbd1")
    assert caught.value.holders == ("opened by process 77 (blkid)",)
    assert 1000 + attaching.BUSY_RETRY_TIMEOUT < machine.now < 1001 + attaching.BUSY_RETRY_TIMEOUT


def test_device_being_configured_by_another_process_is_tried_until_it_is_served(
    machine: AttachMachine,
) -> None:
    machine.when_configured[1] = OSError(errno.EBUSY, "NBD_SET_SOCK: busy")
    machine.while_waiting = lambda: machine.serve(1)
    with pytest.raises(DeviceBusyError, match="served by process 4242"):
        machine.attach("/dev/nbd1")
    assert machine.attachments[0].closed


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
@pytest.mark.parametrize("path", [None, "/dev/nbd0"])
def test_lack_of_privilege_is_reported_with_its_remedy(
    machine: AttachMachine, number: int, path: str | None
) -> None:
    machine.when_configured[0] = OSError(number, "NBD_SET_SOCK: no")
    with pytest.raises(AttachError, match="run as root") as caught:
        machine.attach(path)
    assert (caught.value.errno, caught.value.path) == (number, "/dev/nbd0")
    assert machine.attachments[0].closed
    assert not machine.is_locked(0)


def test_node_that_may_not_be_opened_is_reported_with_its_remedy(machine: AttachMachine) -> None:
    machine.when_opened[0] = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(AttachError, match="CAP_SYS_ADMIN"):
        machine.attach()


def test_other_refusal_of_the_kernel_is_reported_as_it_is(machine: AttachMachine) -> None:
    machine.when_configured[0] = OSError(errno.EINVAL, "NBD_SET_BLKSIZE: Invalid argument")
    with pytest.raises(AttachError) as caught:
        machine.attach()
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value) == "/dev/nbd0: NBD_SET_BLKSIZE: Invalid argument"


def test_bug_in_configure_comes_out_as_it_is_and_leaves_nothing_open(
    machine: AttachMachine,
) -> None:
    machine.when_configured[0] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        machine.attach()
    assert machine.attachments[0].closed
    assert not machine.is_locked(0)


@pytest.mark.parametrize(
    "reason", ["not a block device", "a partition; use the whole device, /dev/nbd0"]
)
def test_node_of_something_else_is_reported_as_it_is(
    machine: AttachMachine, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def refuse(path: str) -> int:
        raise ValueError(reason)

    monkeypatch.setattr(sysfs, "index_of_node", refuse)
    with pytest.raises(AttachError) as caught:
        machine.attach("/dev/thing")
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value) == f"/dev/thing: {reason}"


# By netlink


def test_the_kernel_chooses_a_free_device(machine: AttachMachine, by_netlink: FakeNetlink) -> None:
    attachment = by_netlink.attach()
    assert (attachment.index, attachment.path, by_netlink.connected) == (2, "/dev/nbd2", [None])
    assert machine.is_locked(2)


def test_a_lock_that_is_still_held_does_not_matter(
    machine: AttachMachine, by_netlink: FakeNetlink
) -> None:
    machine.locks.mkdir()
    with open(machine.locks / "nbd2.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert by_netlink.attach().index == 2


def test_where_nodes_are_missing_each_that_is_there_is_tried(by_netlink: FakeNetlink) -> None:
    by_netlink.nodes = {"/dev/nbd1", "/dev/nbd3"}
    by_netlink.refusals = [OSError(errno.EBUSY, "open")]
    assert by_netlink.attach().index == 3
    assert by_netlink.connected == [1, 3]


def test_a_device_that_is_merely_open_is_tried_again(
    machine: AttachMachine, by_netlink: FakeNetlink
) -> None:
    by_netlink.refusals = [OSError(errno.EBUSY, "open")] * 3
    assert by_netlink.attach("/dev/nbd1").index == 1
    assert by_netlink.connected == [1] * 4


@pytest.mark.parametrize("path", [None, "/dev/nbd1"])
def test_refusals_of_netlink_say_what_to_do(by_netlink: FakeNetlink, path: str | None) -> None:
    by_netlink.refusals = [FileNotFoundError(errno.ENOENT, "no family")]
    with pytest.raises(AttachError, match='attach="ioctl" works without'):
        by_netlink.attach(path)
    by_netlink.refusals = [PermissionError(errno.EPERM, "no")]
    with pytest.raises(AttachError, match="run as root"):
        by_netlink.attach(path)


def test_netlink_is_preferred_where_available(
    by_netlink: FakeNetlink, machine: AttachMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "is_available", lambda: True)
    attaching.attach("/dev/nbd1", CONFIG)
    monkeypatch.setattr(netlink, "is_available", lambda: False)
    attaching.attach("/dev/nbd3", CONFIG)
    assert by_netlink.connected == [1]
    assert [attachment.index for attachment in machine.attachments] == [3]


def test_two_that_attach_the_same_identity_do_not_both_serve_it(
    machine: AttachMachine, by_netlink: FakeNetlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = by_netlink.connect

    def connect_second(index: int | None, config: AttachConfig) -> int:
        machine.serve(0, thread=999)
        machine.tree.write(machine.tree.block / "nbd0/backend", "volume\n")
        return connect(index, config)

    monkeypatch.setattr(attaching, "_send_connect", connect_second)
    with pytest.raises(DeviceBusyError, match="'volume' has just been attached at /dev/nbd0"):
        attaching.attach(None, VOLUME, by_netlink=True)
    assert not machine.is_locked(2)
