"""Which device is taken, and what is said when none can be."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aiovblk import AttachError, DeviceBusyError, NBDUnavailableError
from aiovblk.kernel import AttachConfig, RequestQueue, attaching, locks, netlink, sysfs

from ...support.kernel_tree import KernelTree

SOMEBODY = 4242


TERMS = AttachConfig([], 4096, 1, 0, 0, RequestQueue())


class FakeLink:
    """A link whose node is never opened."""

    def __init__(self, index: int, path: str, lock: int) -> None:
        self.index = index
        self.path = path
        self.lock = lock
        self.closed = False

    def disconnect_kernel(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def wait_until_free(self, seconds: float) -> bool:
        os.close(self.lock)
        return True


class Machine:
    """Four free devices, and what happens to whoever opens and configures one."""

    def __init__(self, tree: KernelTree, locks: Path) -> None:
        self.tree = tree
        self.locks = locks
        self.links: list[FakeLink] = []
        self.when_opened: dict[int, OSError] = {}
        self.when_configured: dict[int, Exception] = {}
        self.while_waiting: Callable[[], None] = lambda: None
        self.now = 1000.0
        tree.process(SOMEBODY, "fio")
        for index in range(4):
            tree.device(f"nbd{index}", f"43:{index * 32}")

    def open(self, index: int, path: str, lock: int, terms: AttachConfig) -> FakeLink:
        if index in self.when_opened:
            raise self.when_opened[index]
        self.links.append(FakeLink(index, path, lock))
        if index in self.when_configured:
            self.links[-1].close()
            raise self.when_configured[index]
        return self.links[-1]

    def attach(self, path: str | None = None) -> FakeLink:
        return cast(FakeLink, attaching.attach(path, TERMS, by_netlink=False))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.while_waiting()

    def serve(self, index: int, thread: int = SOMEBODY) -> None:
        self.tree.write(self.tree.block / f"nbd{index}/pid", f"{thread}\n")

    def let_go(self, index: int) -> None:
        (self.tree.block / f"nbd{index}/pid").unlink()

    def is_locked(self, index: int) -> bool:
        lock = os.open(self.locks / f"nbd{index}.lock", os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False


@pytest.fixture
def machine(tree: KernelTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Machine(tree, tmp_path / "locks")
    monkeypatch.setattr(locks, "LOCKS", made.locks)
    monkeypatch.setattr(attaching, "IoctlAttachment", made.open)
    monkeypatch.setattr("aiovblk.kernel.attaching.time.sleep", made.sleep)
    monkeypatch.setattr("aiovblk.kernel.attaching.time.monotonic", lambda: made.now)
    monkeypatch.setattr(sysfs, "index_of_node", lambda path: int(path.removeprefix("/dev/nbd")))
    yield made
    for link in made.links:
        if not link.closed:
            os.close(link.lock)


def test_first_free_device_is_taken_and_locked(machine: Machine) -> None:
    link = machine.attach()
    assert (link.index, link.path, link.closed) == (0, "/dev/nbd0", False)
    assert machine.is_locked(0)


def test_named_device_is_taken(machine: Machine) -> None:
    assert machine.attach("/dev/nbd2").index == 2


def test_attached_devices_are_skipped(machine: Machine) -> None:
    machine.serve(0)
    machine.tree.write(machine.tree.block / "nbd1/size", "8\n")
    assert machine.attach().index == 2
    assert [link.index for link in machine.links] == [2]  # the others were not even opened


def test_locked_devices_are_skipped(machine: Machine) -> None:
    assert [machine.attach().index for _ in range(4)] == [0, 1, 2, 3]


def test_device_that_somebody_else_configures_first_is_skipped(machine: Machine) -> None:
    machine.when_configured[0] = OSError(errno.EBUSY, "NBD_SET_SOCK: busy")
    machine.when_opened[1] = OSError(errno.EBUSY, "open: busy")
    assert machine.attach().index == 2
    assert machine.links[0].closed
    assert not machine.is_locked(0)
    assert not machine.is_locked(1)


def test_all_devices_in_use_is_told_with_their_number(machine: Machine) -> None:
    for index in range(4):
        machine.serve(index)
    with pytest.raises(NBDUnavailableError, match="all 4 NBD devices are in use") as caught:
        machine.attach()
    assert caught.value.errno == errno.EBUSY
    assert "nbds_max=8" in str(caught.value)


def test_device_without_a_node_is_passed_over_for_one_with_a_node(machine: Machine) -> None:
    machine.when_opened[0] = FileNotFoundError(errno.ENOENT, "no node")
    machine.serve(1)
    assert machine.attach().index == 2


def test_no_node_at_all_is_told_with_its_remedy(machine: Machine) -> None:
    for index in range(4):
        machine.when_opened[index] = FileNotFoundError(errno.ENOENT, "no node")
    with pytest.raises(NBDUnavailableError) as caught:
        machine.attach()
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, "/dev/nbd0")
    assert str(caught.value).startswith("/dev/nbd0: no such node; in a container, make it with")
    assert not machine.is_locked(0)


def test_served_device_is_told_with_its_server(machine: Machine) -> None:
    machine.serve(1)
    with pytest.raises(DeviceBusyError) as caught:
        machine.attach("/dev/nbd1")
    assert caught.value.holders == ("served by process 4242 (fio)",)
    assert str(caught.value) == (
        "/dev/nbd1: already attached, served by process 4242 (fio); choose another or unmount it"
    )
    assert machine.now == 1000  # at once


def test_device_that_is_being_let_go_of_is_waited_for(machine: Machine) -> None:
    machine.serve(1, thread=999)

    def let_go() -> None:
        if machine.now > 1000.5:
            machine.let_go(1)

    machine.while_waiting = let_go
    assert machine.attach("/dev/nbd1").index == 1
    assert 1000.5 < machine.now < 1000.6


def test_device_that_is_not_let_go_of_is_told_as_busy(machine: Machine) -> None:
    machine.serve(1, thread=999)
    machine.tree.process(77, "blkid", opens=("/dev/nbd1",))
    with pytest.raises(DeviceBusyError) as caught:
        machine.attach("/dev/nbd1")
    assert caught.value.holders == ("opened by process 77 (blkid)",)
    assert 1000 + attaching.BUSY_RETRY_TIMEOUT < machine.now < 1001 + attaching.BUSY_RETRY_TIMEOUT


def test_device_being_configured_by_somebody_else_is_tried_until_it_is_served(
    machine: Machine,
) -> None:
    machine.when_configured[1] = OSError(errno.EBUSY, "NBD_SET_SOCK: busy")
    machine.while_waiting = lambda: machine.serve(1)
    with pytest.raises(DeviceBusyError, match="served by process 4242"):
        machine.attach("/dev/nbd1")
    assert machine.links[0].closed


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
@pytest.mark.parametrize("path", [None, "/dev/nbd0"])
def test_lack_of_privilege_is_told_with_its_remedy(
    machine: Machine, number: int, path: str | None
) -> None:
    machine.when_configured[0] = OSError(number, "NBD_SET_SOCK: no")
    with pytest.raises(AttachError, match="run as root") as caught:
        machine.attach(path)
    assert (caught.value.errno, caught.value.path) == (number, "/dev/nbd0")
    assert machine.links[0].closed
    assert not machine.is_locked(0)


def test_node_that_may_not_be_opened_is_told_with_its_remedy(machine: Machine) -> None:
    machine.when_opened[0] = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(AttachError, match="CAP_SYS_ADMIN"):
        machine.attach()


def test_other_refusal_of_the_kernel_is_told_as_it_is(machine: Machine) -> None:
    machine.when_configured[0] = OSError(errno.EINVAL, "NBD_SET_BLKSIZE: Invalid argument")
    with pytest.raises(AttachError) as caught:
        machine.attach()
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value) == "/dev/nbd0: NBD_SET_BLKSIZE: Invalid argument"


def test_bug_in_configure_comes_out_as_it_is_and_leaves_nothing_open(machine: Machine) -> None:
    machine.when_configured[0] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        machine.attach()
    assert machine.links[0].closed
    assert not machine.is_locked(0)


def test_without_a_place_for_locks_devices_are_attached_all_the_same(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCKS", tmp_path / "no/such/place")
    assert machine.attach().index == 0
    machine.serve(0)
    assert machine.attach().index == 1


def test_lock_that_is_a_symbolic_link_is_not_followed(machine: Machine, tmp_path: Path) -> None:
    machine.locks.mkdir()
    (machine.locks / "nbd0.lock").symlink_to(tmp_path / "victim")
    assert machine.attach().index == 0
    assert not (tmp_path / "victim").exists()


def test_place_for_locks_that_may_not_be_made_is_told_as_lack_of_privilege(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(AttachError, match="run as root"):
        machine.attach()


def modprobe(monkeypatch: pytest.MonkeyPatch, run: Callable[..., object] | None) -> None:
    found = "/sbin/modprobe" if run else None
    monkeypatch.setattr("aiovblk.kernel.attaching.shutil.which", lambda name, path: found)
    monkeypatch.setattr("aiovblk.kernel.attaching.subprocess.run", run)


def failing(*command: object, **_: object) -> subprocess.CompletedProcess[str]:
    assert command == (["/sbin/modprobe", "nbd"],)
    return subprocess.CompletedProcess([], 1, "", "modprobe: FATAL: Module nbd not found.\n")


def silent(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], 3, "", "")


def hanging(*command: list[str], **options: float) -> object:
    raise subprocess.TimeoutExpired(command[0], options["timeout"])


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (None, "modprobe is not installed"),
        (failing, "modprobe: FATAL: Module nbd not found."),
        (silent, "modprobe nbd ended with status 3"),
        (hanging, "modprobe nbd did not return in 30 s"),
    ],
)
def test_driver_that_cannot_be_loaded_is_told_with_its_reason(
    tree: KernelTree,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., object] | None,
    reason: str,
) -> None:
    modprobe(monkeypatch, run)
    with pytest.raises(NBDUnavailableError) as caught:
        attaching.attach("/dev/nbd0", TERMS)
    assert caught.value.errno == errno.ENODEV
    assert str(caught.value).startswith("/dev/nbd0: the kernel's NBD driver is not loaded")
    assert f"({reason})" in str(caught.value)


def test_driver_is_loaded_when_it_is_missing(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        tree.device("nbd0", "43:0")
        return subprocess.CompletedProcess([], 0, "", "")

    modprobe(monkeypatch, load)
    attaching.load_driver()
    assert sysfs.indices() == [0]


def test_driver_that_is_there_is_not_loaded_again(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.device("nbd0", "43:0")
    modprobe(monkeypatch, None)
    attaching.load_driver()


def test_missing_node_is_told_with_the_devices_there_are(tree: KernelTree) -> None:
    for index in range(3):
        tree.device(f"nbd{index}", f"43:{index}")
    path = str(tree.proc / "nbd9")
    with pytest.raises(NBDUnavailableError, match="/dev/nbd0 to /dev/nbd2") as caught:
        attaching.resolve(path)
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, path)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("nbd3", "nbds_max=4` makes more"),
        ("nbd99", "nbds_max=100` makes more"),
        ("nbd32767", "nbds_max=32768` makes more"),
    ],
)
def test_advice_makes_the_device_that_was_asked_for(
    tree: KernelTree, name: str, advice: str
) -> None:
    for index in range(3):
        tree.device(f"nbd{index}", f"43:{index}")
    with pytest.raises(NBDUnavailableError, match=advice):
        attaching.resolve(str(tree.proc / name))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nbd32768", "/dev/nbd0 to /dev/nbd2$"),  # more than the driver can have
        ("nbd1", "no such node; in a container, make it with `mknod .*/nbd1 b 43 MINOR`"),
        ("nonexistent", "NBD devices are called /dev/nbd0, /dev/nbd1 and so on$"),
        ("nbd1p1", "NBD devices are called /dev/nbd0, /dev/nbd1 and so on$"),
        ("nbd", "NBD devices are called /dev/nbd0, /dev/nbd1 and so on$"),
    ],
)
def test_no_advice_is_given_that_would_not_help(tree: KernelTree, name: str, reason: str) -> None:
    for index in range(3):
        tree.device(f"nbd{index}", f"43:{index}")
    with pytest.raises(NBDUnavailableError, match=reason):
        attaching.resolve(str(tree.proc / name))


def test_no_missing_driver_is_blamed_for_what_is_no_device_of_it(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    modprobe(monkeypatch, None)
    for path in ("/nonexistent", "/dev/sdz"):
        with pytest.raises(NBDUnavailableError, match="NBD devices are called") as caught:
            attaching.attach(path, TERMS)
        assert "modprobe" not in str(caught.value)
    with pytest.raises(NBDUnavailableError, match="modprobe"):
        attaching.attach("/dev/nbd99", TERMS)


@pytest.mark.parametrize(
    "reason", ["not a block device", "a partition; use the whole device, /dev/nbd0"]
)
def test_node_of_something_else_is_told_as_it_is(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def refuse(path: str) -> int:
        raise ValueError(reason)

    monkeypatch.setattr(sysfs, "index_of_node", refuse)
    with pytest.raises(AttachError) as caught:
        machine.attach("/dev/thing")
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value) == f"/dev/thing: {reason}"


# By netlink


class Kernel:
    """What netlink answers, and what it was asked."""

    def __init__(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[int | None] = []
        self.refusals: list[OSError] = []
        self.free = 2
        self.nodes = {f"/dev/nbd{index}" for index in range(4)}
        monkeypatch.setattr(
            attaching, "NetlinkMonitorThread", lambda attach, _: SimpleNamespace(index=attach())
        )
        monkeypatch.setattr(attaching, "_connect_now", self.connect)
        monkeypatch.setattr(attaching, "NetlinkAttachment", self.link)
        monkeypatch.setattr(os.path, "exists", lambda path: path in self.nodes)

    def attach(self, path: str | None = None) -> FakeLink:
        return cast(FakeLink, attaching.attach(path, TERMS, by_netlink=True))

    def connect(self, index: int | None, terms: AttachConfig) -> int:
        self.asked.append(index)
        if self.refusals:
            raise self.refusals.pop(0)
        return self.free if index is None else index

    def link(self, anchor: Any, path: str, lock: int, terms: AttachConfig) -> FakeLink:
        return FakeLink(anchor.index, path, lock)


@pytest.fixture
def by_netlink(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(machine, monkeypatch)


def test_the_kernel_chooses_a_free_device(machine: Machine, by_netlink: Kernel) -> None:
    link = by_netlink.attach()
    assert (link.index, link.path, by_netlink.asked) == (2, "/dev/nbd2", [None])
    assert machine.is_locked(2)


def test_a_lock_that_somebody_still_has_does_not_matter(
    machine: Machine, by_netlink: Kernel
) -> None:
    machine.locks.mkdir()
    with open(machine.locks / "nbd2.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert by_netlink.attach().index == 2


def test_where_nodes_are_missing_each_that_is_there_is_tried(by_netlink: Kernel) -> None:
    by_netlink.nodes = {"/dev/nbd1", "/dev/nbd3"}
    by_netlink.refusals = [OSError(errno.EBUSY, "open")]
    assert by_netlink.attach().index == 3
    assert by_netlink.asked == [1, 3]


def test_a_device_that_is_merely_open_is_tried_again(machine: Machine, by_netlink: Kernel) -> None:
    by_netlink.refusals = [OSError(errno.EBUSY, "open")] * 3
    assert by_netlink.attach("/dev/nbd1").index == 1
    assert by_netlink.asked == [1] * 4


@pytest.mark.parametrize("path", [None, "/dev/nbd1"])
def test_refusals_of_netlink_say_what_to_do(by_netlink: Kernel, path: str | None) -> None:
    by_netlink.refusals = [FileNotFoundError(errno.ENOENT, "no family")]
    with pytest.raises(AttachError, match='attach="ioctl" works without'):
        by_netlink.attach(path)
    by_netlink.refusals = [PermissionError(errno.EPERM, "no")]
    with pytest.raises(AttachError, match="run as root"):
        by_netlink.attach(path)


def test_netlink_is_preferred_where_it_can_be(
    by_netlink: Kernel, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "is_available", lambda: True)
    attaching.attach("/dev/nbd1", TERMS)
    monkeypatch.setattr(netlink, "is_available", lambda: False)
    attaching.attach("/dev/nbd3", TERMS)
    assert by_netlink.asked == [1]
    assert [link.index for link in machine.links] == [3]


# Taking over


IDENTITY = AttachConfig([], 4096, 1, 0, 0, RequestQueue(), survive=60, identity="volume")


@pytest.fixture
def lost(machine: Machine, by_netlink: Kernel) -> Path:
    """A device of an identity whose server is gone."""
    machine.serve(2, thread=999)
    directory = machine.tree.block / "nbd2"
    machine.tree.write(directory / "backend", "volume\n")
    machine.tree.write(directory / "size", "8\n")
    machine.tree.write(directory / "queue/logical_block_size", "4096\n")
    return directory


@pytest.mark.parametrize("path", [None, "/dev/nbd2"])
def test_a_device_whose_server_is_gone_is_taken_over(
    machine: Machine, lost: Path, path: str | None
) -> None:
    link = cast(FakeLink, attaching.take_over_orphan(path, IDENTITY))
    assert (link.index, link.path) == (2, "/dev/nbd2")
    assert machine.is_locked(2)
    os.close(link.lock)


def test_nothing_is_taken_over_where_there_is_nothing(machine: Machine, lost: Path) -> None:
    assert attaching.take_over_orphan(None, replace(IDENTITY, identity="another")) is None
    with pytest.raises(DeviceBusyError, match="'volume' is attached at /dev/nbd2; mount it there"):
        attaching.take_over_orphan("/dev/nbd1", IDENTITY)


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (replace(IDENTITY, blocks=2), "attached with 4096 bytes, and this device has 8192"),
        (replace(IDENTITY, block_size=512, blocks=8), "4096 bytes in a block, .* has 512"),
        (replace(IDENTITY, flags=0b11), "attached for writing, and this device cannot be written"),
    ],
)
def test_a_device_that_is_another_is_refused(
    machine: Machine, lost: Path, terms: AttachConfig, reason: str
) -> None:
    with pytest.raises(AttachError, match=reason) as caught:
        attaching.take_over_orphan(None, terms)
    assert caught.value.path == "/dev/nbd2"
    assert not machine.is_locked(2)


def test_a_device_that_has_a_server_is_not_taken_over(machine: Machine, lost: Path) -> None:
    machine.tree.kernel_threads("nbd2")
    with pytest.raises(DeviceBusyError, match="still has a server"):
        attaching.take_over_orphan(None, IDENTITY)
    assert not machine.is_locked(2)
    lock = locks.acquire(2)
    locks.write_owner(lock)
    machine.tree.process(os.getpid(), "python")
    with pytest.raises(DeviceBusyError, match=rf"served by process {os.getpid()} \(python\)"):
        attaching.take_over_orphan(None, IDENTITY)
    os.close(lock)


def test_a_server_that_is_on_its_way_out_is_waited_for(machine: Machine, lost: Path) -> None:
    lock = locks.acquire(2)
    locks.write_owner(lock)
    machine.while_waiting = lambda: os.close(lock) if machine.is_locked(2) else None
    link = cast(FakeLink, attaching.take_over_orphan(None, IDENTITY))
    assert machine.now > 1000
    os.close(link.lock)


def test_a_lock_tells_who_has_it_now(machine: Machine) -> None:
    machine.tree.process(os.getpid(), "python")
    assert locks.holder(1) is None
    lock = locks.acquire(1)
    assert locks.holder(1) is None  # it may only find out that the device is taken
    locks.write_owner(lock)
    before = locks.owner_token(lock)
    assert locks.holder(1) == (os.getpid(), "python")
    locks.write_owner(lock)
    assert locks.owner_token(lock) != before
    assert locks.server(1) is None  # it is not attached
    machine.serve(1, thread=999)
    assert locks.server(1) == (os.getpid(), "python")
    os.close(lock)
    assert locks.holder(1) is None
    assert locks.server(1) is None


def test_two_that_attach_the_same_identity_do_not_both_serve_it(
    machine: Machine, by_netlink: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = by_netlink.connect

    def connect_second(index: int | None, terms: AttachConfig) -> int:
        machine.serve(0, thread=999)
        machine.tree.write(machine.tree.block / "nbd0/backend", "volume\n")
        return connect(index, terms)

    monkeypatch.setattr(attaching, "_connect_now", connect_second)
    with pytest.raises(DeviceBusyError, match="'volume' has just been attached at /dev/nbd0"):
        attaching.attach(None, IDENTITY, by_netlink=True)
    assert not machine.is_locked(2)
