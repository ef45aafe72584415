"""A fake of the kernel's ublk driver, in the place of its system calls.

``mount(..., attach="ublk")`` runs from end to end in a test, with real rings, mappings, queues,
attachments and threads. What the driver would do is done here: control commands, the tags of a
device by /dev/ublkcN, /dev/ublkbN with its page cache; /sys shows what there is.

It is like the driver in everything that an unmount depends on. STOP_DEV writes back what programs
have cached, waits for what is in flight, then gives all tags back with ENODEV. START_DEV waits for
all tags, and reads before it returns; meanwhile STOP_DEV waits (the driver's mutex). The end of the
ring fails what is in flight, but only if one tag at least waits in the kernel (io_uring's
cancellation of that is how the driver learns of it). A number is free again with the last close of
its nodes.

A device with the flags of recovery outlives its ring: when /dev/ublkcN is closed as well, it waits
for another server, to which what was in flight is sent again. Stopping such a device discards what
programs have cached, unless none has it open (TRY_STOP_DEV), the last of which has written back.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from aiovblk import atfork, ublk
from aiovblk.kernel import ioctl, writeback
from aiovblk.threads import run_in_daemon_thread
from aiovblk.ublk import attaching, attachment, availability, served_device

from .fake_io_uring import FakeIoUring, KernelRing
from .file_id import file_id
from .kernel_log import KernelLog
from .kernel_tree import KernelTree
from .ublk_commands import COMMIT_AND_FETCH, DEVICE_INFO, FETCH, NAMES, Control
from .ublk_device import PAGE, SECTOR, FakeUblkDevice, Op

CONTROL = "/dev/ublk-control"
QUIET = {"GET_DEV_INFO2", "GET_FEATURES"}
"""Commands that are not logged."""
ALL_FEATURES = 0x1FFFFF  # of Linux 7.3
__all__ = ["PAGE", "FakeUblk", "Op", "ublk_kernel"]


class FakeUblk(KernelLog):
    """The driver with its devices, of which most tests have one, /dev/ublkb0.

    Attributes:
        log: what has happened, in order; devices add what they do.
        devices: by number.
        features: what the driver can do.
        drops: flags that it does not grant.
        failing: the error number of each control command that fails, by name.
        stuck: names of control commands that do not return before :meth:`free`.
        holder: whether a user (a mounted file system) has claimed the device exclusively.
        before_stop: called when STOP_DEV begins to write back.
        char_error: the error number of opening a new device's /dev/ublkcN; 0 for none.
        hides_node: whether a new device's /dev/ublkbN does not appear.
        keeps_node: whether it stays root's, although an ordinary user has made the device.
        faults: what was done that must never be.
        uring: io_uring's system calls.

    """

    def __init__(self, tree: KernelTree, folder: Path) -> None:
        super().__init__()
        self.tree, self.folder = tree, folder
        self.devices: dict[int, FakeUblkDevice] = {}
        self.features = ALL_FEATURES
        self.drops = 0
        self.failing: dict[str, int] = {}
        self.stuck: set[str] = set()
        self.holder = False
        self.before_stop: Callable[[], None] = lambda: None
        self.char_error = 0
        self.hides_node = False
        self.keeps_node = False
        self.faults: list[str] = []
        self.uring = FakeIoUring(self._submitted, self._ring_closed)
        self.changed = threading.Condition(threading.RLock())
        self._control = folder / "ublk-control"
        self._control.touch()
        self._freed = threading.Event()

    # Programs

    @property
    def device(self) -> FakeUblkDevice:
        """The only device."""
        (found,) = self.devices.values()
        return found

    @property
    def ring(self) -> KernelRing:
        """That of the queue of the only device."""
        found = self.device.ring
        assert found is not None
        return found

    def send(
        self, op: Op | int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0
    ) -> Future[bytes]:
        """Make a request as a program does with O_DIRECT; return the future of its answer."""
        return self.device.send(op, offset, length, data, flags)

    def request(
        self, op: Op | int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0
    ) -> bytes:
        """Make a request, and wait for its answer."""
        return self.send(op, offset, length, data, flags).result()

    def write(self, page: int, content: bytes) -> None:
        """Write a page as a program does, into the page cache; no request is sent yet."""
        self.device.dirty[page * PAGE] = content.ljust(PAGE, b"\0")

    def stop_from_outside(self) -> Future[None]:
        """Stop the device as another program does."""
        return run_in_daemon_thread(self.device.stop)

    def open_for_a_program(self) -> int:
        """Open the node as a program does, and keep it open; return the descriptor."""
        return os.open(self.device.node, os.O_RDONLY | os.O_CLOEXEC)

    def leaks(self) -> list[str]:
        """Describe what is left of any device, or of what served it.

        A thread whose command has been carried out may take a moment to close its ring.
        """
        with self.changed:
            self.changed.wait_for(lambda: not self._leaks(), 10)
        return self._leaks()

    def _leaks(self) -> list[str]:
        return [
            *(f"device {number}" for number in self.devices),
            *(f"ring {fd}" for fd in self.uring.rings),
            *(f"mapping of {size} bytes" for size in self.uring.mapped.values()),
            *(f"descriptor of {path}" for path in self._open_paths(str(self.folder))),
        ]

    def free(self) -> None:
        """Have the calls that are stuck return."""
        self.stuck.clear()
        self._freed.set()

    def end(self) -> None:
        """End everything that may wait."""
        self.free()
        for device in list(self.devices.values()):
            device.fail_all()

    # System calls

    def open(self, path: Any, flags: int = 0, *arguments: Any, **options: Any) -> int:
        name = str(path)
        if name == CONTROL:
            return self._open(self._control, os.O_RDWR | os.O_CLOEXEC)
        if found := re.fullmatch(r"/dev/ublkc(\d+)", name):
            device = self.devices.get(int(found[1]))
            if device is None or device.hides_char:
                raise OSError(device.hides_char if device else errno.ENOENT, "no node", name)
            return self._open(f"/proc/self/fd/{device.char}", flags)
        return self._open(path, flags, *arguments, **options)

    _open = staticmethod(os.open)

    def open_protected(self, path: str, flags: int = 0) -> int:
        if not (found := re.fullmatch(r"/dev/ublkb(\d+)", path)):
            return atfork.protect_fd(self._open(path, os.O_RDONLY | os.O_CLOEXEC | flags))
        device = self.devices.get(int(found[1]))
        if device is None or not device.is_live:
            raise OSError(errno.ENXIO, "no such device", path)
        if flags & os.O_EXCL:
            if self.holder:
                raise OSError(errno.EBUSY, "Device or resource busy", path)
            self.note("claim")
        return atfork.protect_fd(self._open(device.node, os.O_RDONLY | os.O_CLOEXEC))

    def close(self, fd: int) -> None:
        atfork._descriptors.discard(fd)
        self.uring.closed(fd)
        os.close(fd)
        with self.changed:
            for device in list(self.devices.values()):
                device.quiesce_if_unserved()
                self._free_if_unused(device)
            self.changed.notify_all()

    def exists(self, path: Any) -> bool:
        if found := re.fullmatch(r"/dev/ublkb(\d+)", str(path)):
            device = self.devices.get(int(found[1]))
            return device is not None and device.is_live and not device.hides_node
        return self._exists(path) if path != CONTROL else True

    _exists = staticmethod(os.path.exists)

    def access(self, path: Any, mode: int, **options: Any) -> bool:
        if found := re.fullmatch(r"/dev/ublkb(\d+)", str(path)):
            device = self.devices.get(int(found[1]))
            return self.exists(path) and device is not None and not device.keeps_node
        return self._access(path, mode, **options)

    _access = staticmethod(os.access)

    def fsync(self, fd: int) -> None:
        for device in self.devices.values():
            if file_id(fd) == file_id(device.node):
                self.pass_by("fsync")
                self.note("sync")
                device.write_back(flush=True)
                return
        self._fsync(fd)

    _fsync = staticmethod(os.fsync)

    def syncfs(self, fd: int) -> int:
        self.note("syncfs")
        return 0

    def pass_by(self, name: str) -> None:
        """Hang here if it was asked for."""
        if name in self.stuck:
            self.note(f"{name} hangs")
            self._freed.wait()

    def _open_paths(self, part: str) -> list[str]:
        found = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if part in (path := os.readlink(f"/proc/self/fd/{fd}")):
                    found.append(path)
        return found

    # The driver

    def _submitted(
        self, ring: KernelRing, fd: int, command: int, user_data: int, payload: bytes
    ) -> None:
        if command in NAMES:
            control = Control(NAMES[command], payload)
            run_in_daemon_thread(self._carry_out, ring, control, user_data)
            return
        char_id = file_id(fd)
        (device,) = (each for each in self.devices.values() if each.char_id == char_id)
        _, tag, result, address = struct.unpack_from("<HHiQ", payload)
        assert tag == user_data
        if command == FETCH:
            device.fetch(ring, tag, address)
        else:
            assert command == COMMIT_AND_FETCH
            device.commit(tag, result, address)

    def _carry_out(self, ring: KernelRing, command: Control, user_data: int) -> None:
        if command.name not in QUIET:
            self.note(command.name)
        try:
            if number := self.failing.get(command.name):
                raise OSError(number, "it was asked to fail")
            self.pass_by(command.name)
            getattr(self, f"_{command.name}".lower())(command)
        except OSError as exc:
            ring.post(user_data, -(exc.errno or errno.EIO))
        else:
            ring.post(user_data, 0)

    def _find(self, command: Control) -> FakeUblkDevice:
        assert command.number is not None
        with self.changed:
            device = self.devices.get(command.number)
            if device is None:
                raise OSError(errno.ENODEV, "no such device")
            if device.is_unprivileged:
                assert command.path == f"/dev/ublkc{device.number}\0".encode()
                if device.hides_char:
                    raise OSError(errno.EACCES, "it is not this user's")
            return device

    def _get_features(self, command: Control) -> None:
        command.answer(struct.pack("<Q", self.features))

    def _add_dev(self, command: Control) -> None:
        fields = list(DEVICE_INFO.unpack(command.content))
        with self.changed:
            number = fields[5]
            if number == 0xFFFFFFFF:
                number = min(set(range(99)) - set(self.devices))
            elif number in self.devices:
                raise OSError(errno.EEXIST, "it exists")
            fields[5], fields[8] = number, fields[8] & ~self.drops
            self.devices[number] = FakeUblkDevice(self, number, fields)
        command.answer(DEVICE_INFO.pack(*fields))

    def _set_params(self, command: Control) -> None:
        self._find(command).parameters = command.content

    def _get_dev_info2(self, command: Control) -> None:
        assert command.number is not None
        if (device := self.devices.get(command.number)) is None:
            raise OSError(errno.ENODEV, "no such device")
        command.answer(DEVICE_INFO.pack(*device.fields))

    def _start_dev(self, command: Control) -> None:
        self._find(command).start(command.data)

    def _stop_dev(self, command: Control) -> None:
        self._find(command).stop()

    def _try_stop_dev(self, command: Control) -> None:
        self._find(command).stop_unused()

    def _start_user_recovery(self, command: Control) -> None:
        self._find(command).start_recovery()

    def _end_user_recovery(self, command: Control) -> None:
        self._find(command).end_recovery(command.data)

    def _update_size(self, command: Control) -> None:
        self._find(command).set_size(command.data * SECTOR)

    def _del_dev(self, command: Control) -> None:
        device = self._find(command)
        self._del_dev_async(command)
        with self.changed:
            self.changed.wait_for(lambda: device.number not in self.devices)

    def _del_dev_async(self, command: Control) -> None:
        device = self._find(command)
        device.stop()
        with self.changed:
            device.is_deleted = True
            self._free_if_unused(device)

    def _free_if_unused(self, device: FakeUblkDevice) -> None:
        if device.is_deleted and not device.count_users():
            del self.devices[device.number]
            device.close()
            self.note("free")
            self.changed.notify_all()

    def _ring_closed(self, ring: KernelRing) -> None:
        for device in list(self.devices.values()):
            if device.ring is ring:
                self.note("the queue is closed")
                device.end_of_ring()


def start_no_process(program: str, *words: str) -> NoReturn:
    """In place of another process, which would not see this kernel."""
    raise OSError(errno.EAGAIN, "no more processes")


def install(kernel: FakeUblk, patch: pytest.MonkeyPatch) -> None:
    """Put the fake where the package makes its system calls."""
    kernel.uring.install(patch)
    patch.setattr(os, "open", kernel.open)
    patch.setattr(os, "fsync", kernel.fsync)
    # In this process, whose kernel this is.
    patch.setattr(served_device, "start", start_no_process)
    patch.setattr(attachment, "sync_in_child", lambda disk, path, fd: writeback.sync(disk, fd))
    patch.setattr(os.path, "exists", kernel.exists)
    patch.setattr(os, "access", kernel.access)
    patch.setattr(atfork, "open_protected", kernel.open_protected)
    patch.setattr(atfork, "close_protected", kernel.close)
    patch.setattr(ioctl, "_libc", kernel)
    patch.setattr(availability, "refuse_bad_kernel", lambda: None)
    for module in (attaching, ublk):
        patch.setattr(module, "is_privileged", lambda: True)


@pytest.fixture
def ublk_kernel(
    tree: KernelTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeUblk]:
    """Put the fake in the place of the kernel; what must never be done was not done."""
    made = FakeUblk(tree, tmp_path)
    with monkeypatch.context() as patch:
        install(made, patch)
        yield made
        made.end()
    assert made.faults == []
