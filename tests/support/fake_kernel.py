"""A fake of the kernel's NBD driver, in the place of its system calls.

``mount()`` runs from end to end in a test, with real attachments, threads and sockets. What the
kernel would do is done here: /dev/nbdN can be opened, also exclusively; ioctls and netlink's
commands attach and detach it; what a program has written stays in a page cache until a sync, and
goes to the server as requests then. /sys shows what is attached.

It is like the driver in everything that an unmount depends on. NBD_DO_IT stays until all
connections have ended. Requests in flight when they do are forgotten until NBD_CLEAR_SOCK
(nbd_start_device_ioctl) or netlink's disconnect fails them. An index is free again with the last
close of its node. Write-back fails with EIO if there is no connection, and what was cached is lost.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aiovblk import atfork
from aiovblk.kernel import attaching, ioctl, link_dead, locks, monitor, netlink, sysfs
from aiovblk.kernel.ioctl import Ioctl
from aiovblk.protocol import Command, TransmissionFlag

from .file_id import file_id
from .kernel_end import KernelEnd
from .kernel_log import KernelLog
from .kernel_tree import KernelTree

PAGE = 4096


class FakeKernel(KernelLog):
    """One device, /dev/nbd0, and its users.

    Attributes:
        log: what has happened, in order; devices add what they do.
        holder: whether a user (a mounted file system) has claimed the device exclusively.
        stuck: names of calls that do not return before :meth:`free`.
        sends_disc: whether NBD_DISCONNECT has any effect.
        freed_by_netlink: whether netlink's disconnect does what :meth:`free` does.

    """

    def __init__(self, tree: KernelTree, nodes: Path) -> None:
        super().__init__()
        self.holder = False
        self.stuck: set[str] = set()
        self.connections: list[KernelEnd] = []
        self.sends_disc = True
        self.freed_by_netlink = False
        self._tree = tree
        self._node = nodes / "nbd0"
        self._node.touch()
        self._node_id = file_id(self._node)
        self._directory = tree.device("nbd0", "43:0")
        self._dirty: dict[int, bytes] = {}
        self._flags = TransmissionFlag(0)
        self._size = self._block_size = 0
        self._attached = self._scanned = self._cut = False
        self._freed = threading.Event()

    # Programs

    def write(self, page: int, content: bytes) -> None:
        """Write a page as a program does, into the page cache; no request is sent yet."""
        self._dirty[page * PAGE] = content.ljust(PAGE, b"\0")

    def request(self, command: Command, offset: int, length: int, data: bytes = b"") -> bytes:
        """Make a request as a program does with O_DIRECT; wait for its answer."""
        if not self.connections or self._cut:
            raise OSError(errno.EIO, "no connection")
        return self.connections[0].send(command, offset, length, data).result()

    def disconnect_from_outside(self) -> None:
        """Disconnect as ``nbd-client -d`` does."""
        self._nbd_disconnect()

    def break_connections(self) -> None:
        """End all connections without a disconnect."""
        for each in self.connections:
            each.shut_down()

    def open_for_a_program(self) -> int:
        """Open the node as a program does, and keep it open; return the descriptor."""
        return os.open(self._node, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def is_free(self) -> bool:
        """Whether the device could be attached again."""
        return sysfs.is_free(0)

    def free(self) -> None:
        """Have the calls that are stuck return."""
        self._freed.set()

    def end(self) -> None:
        """End all threads."""
        self.free()
        self.break_connections()
        for each in self.connections:
            each.fail_all()
            each.receiving.result()
            each.sock.close()

    # System calls

    def open(self, path: str, flags: int = 0) -> int:
        if path != "/dev/nbd0":
            return atfork.protect_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags))
        if flags & os.O_EXCL:
            if self.holder:
                raise OSError(errno.EBUSY, "Device or resource busy", path)
            self.note("claim")
        elif self._attached and not self._scanned:
            self._scanned = True
            with suppress(OSError):  # looks for partitions
                self.request(Command.READ, 0, PAGE)
        return atfork.protect_fd(os.open(self._node, os.O_RDONLY | os.O_CLOEXEC))

    def close(self, fd: int) -> None:
        atfork._descriptors.discard(fd)
        is_ours = file_id(fd) == self._node_id
        os.close(fd)
        with self._guard:
            if is_ours and not self._attached and self._users() == 0 and not self.is_free:
                self._show(0, None)
                self.note("free")

    def _users(self) -> int:
        found = 0
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                found += os.readlink(f"/proc/self/fd/{fd}") == str(self._node)
        return found

    def fsync(self, fd: int) -> None:
        if file_id(fd) != self._node_id:
            self._fsync(fd)
            return
        self._pass("fsync")
        self.note("sync")
        dirty, self._dirty = self._dirty, {}
        if self._cut:
            self.note("sync fails")
        for offset, content in dirty.items():
            self.request(Command.WRITE, offset, len(content), content)
        if self._flags & TransmissionFlag.SEND_FLUSH and self.connections:
            self.request(Command.FLUSH, 0, 0)

    _fsync = staticmethod(os.fsync)

    def ioctl(self, fd: int, request: int, argument: int) -> int:
        assert file_id(fd) == self._node_id
        try:
            self._pass(Ioctl(request).name)
            getattr(self, f"_{Ioctl(request).name}".lower(), lambda _: None)(argument)
        except OSError as exc:
            ctypes.set_errno(exc.errno or errno.EIO)
            return -1
        return 0

    def syncfs(self, fd: int) -> int:
        self.note("syncfs")
        return 0

    def _pass(self, name: str) -> None:
        if name in self.stuck:
            self.note(f"{name} hangs")
            self._freed.wait()

    # The driver, by ioctl

    def _nbd_set_sock(self, sock: int) -> None:
        self.connections.append(KernelEnd(socket.socket(fileno=os.dup(sock))))

    def _nbd_set_blksize(self, size: int) -> None:
        self._block_size = size

    def _nbd_set_size_blocks(self, blocks: int) -> None:
        self._size = blocks * self._block_size
        if self._attached:
            self._show(self._size, sysfs.server_thread(0))

    def _nbd_set_flags(self, flags: int) -> None:
        self._flags = TransmissionFlag(flags)

    def _nbd_do_it(self, _: int) -> None:
        self._attach(threading.get_native_id())
        for each in self.connections:
            each.receiving.result()
        self._pass("the end of NBD_DO_IT")
        self.note("NBD_DO_IT returns")
        self._attached = False

    def _nbd_disconnect(self, _: int = 0) -> None:
        self.note("disconnect")
        if self.sends_disc:
            for each in self.connections:
                each.send(Command.DISC, 0, 0, b"")

    def _nbd_clear_sock(self, _: int = 0) -> None:
        self.note("clear")
        self.break_connections()
        for each in self.connections:
            each.fail_all()
        self._dirty.clear()

    def _attach(self, thread: int) -> None:
        self._attached, self._scanned = True, False
        self.note("attached")
        self._show(self._size, thread)

    def _show(self, size: int, thread: int | None) -> None:
        self._tree.write(self._directory / "size", f"{size // sysfs.SECTOR}\n")
        pid = self._directory / "pid"
        if thread is None:
            pid.unlink(missing_ok=True)
        else:
            self._tree.write(pid, f"{thread}\n")

    # The driver, by netlink

    def connect(
        self, index: int | None, sockets: list[int], *, size: int, block_size: int, **options: Any
    ) -> int:
        for sock in sockets:
            self._nbd_set_sock(sock)
        self._size, self._block_size = size, block_size
        self._flags = TransmissionFlag(options["flags"])
        self._attach(threading.get_native_id())
        return 0

    def reconfigure(
        self, index: int, identity: str | None, *, size: int | None = None, **_: Any
    ) -> None:
        if size is not None:
            self._size = size
            self._show(size, sysfs.server_thread(0))

    def disconnect(self, index: int, timeout: float = 10) -> None:
        """Disconnect as the kernel does by netlink: send DISC, then shut the connections down."""
        self.note(f"netlink disconnects within {timeout:g} s")
        self._pass("netlink")
        if self.freed_by_netlink:
            self.free()
        self._cut = True  # before the server receives DISC
        for each in self.connections:
            each.send(Command.DISC, 0, 0, b"")
        self._pass("the end of the connections")
        for each in self.connections:
            each.shut_down()
            each.receiving.result()  # as nbd_disconnect_and_put() flushes recv_workq before that
            each.fail_all()
        self._attached = False


class SilentLinkDeadListener:
    """A listener for netlink's events of dead connections that never receives one."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def read(self) -> list[int]:
        return []

    def close(self) -> None:
        os.close(self._fd)


class NoWatchdog:
    """A watchdog without a process."""

    def watch_pending(self, thread: int) -> None:
        pass

    def watch(self, thread: int, index: int, survive: float, owner_token: str = "") -> None:
        pass

    def forget(self, thread: int) -> None:
        pass

    release_to_successor = forget


def install(kernel: FakeKernel, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put the fake where the package makes its system calls."""
    exists: Callable[[str], bool] = os.path.exists
    patch.setattr(atfork, "open_protected", kernel.open)
    patch.setattr(atfork, "close_protected", kernel.close)
    patch.setattr(os, "fsync", kernel.fsync)
    patch.setattr(os.path, "exists", lambda path: path == "/dev/nbd0" or exists(path))
    patch.setattr(ioctl, "_libc", kernel)
    patch.setattr(sysfs, "index_of_node", lambda path: int(re.sub(r"^/dev/nbd", "", path)))
    patch.setattr(locks, "LOCKS", folder / "locks")
    patch.setattr(attaching, "prefers_netlink", lambda: False)
    patch.setattr(monitor, "watchdog", NoWatchdog())
    for name, replacement in {
        "connect": kernel.connect,
        "reconfigure": kernel.reconfigure,
        "disconnect": kernel.disconnect,
    }.items():
        patch.setattr(netlink, name, replacement)
    patch.setattr(link_dead, "LinkDeadListener", SilentLinkDeadListener)


@pytest.fixture
def kernel(
    tree: KernelTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeKernel]:
    """Put the fake in the place of the kernel."""
    made = FakeKernel(tree, tmp_path)
    install(made, monkeypatch, tmp_path)
    yield made
    made.end()
