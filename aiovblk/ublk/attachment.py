"""The attachment of one /dev/ublkbN, from the first command to the last.

What holds here:

* Nearly everything blocks, and some of it waits for requests that the server has to answer. Only
  :meth:`UblkAttachment.open_queue` belongs into the thread that serves the device.
* A device that was stopped, or has lost its queue, is never started: its requests would go to tags
  that the driver does not have.
"""

from __future__ import annotations

import _thread
import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from .. import atfork
from ..kernel import RequestQueue, request_queue, sysfs
from ..kernel.node_user import NodeUser
from ..kernel.writeback_child import sync_in_child
from . import control
from .commands import SECTOR, Feature, UblkDeviceInfo
from .queue import Queue
from .served_device import ServedDevice

STOP_TIMEOUT = 24 * 3600.0
"""Seconds for the kernel to write back and stop; those who wait have timeouts of their own."""

HELPER_TIMEOUT = 4.0
"""Seconds for the process that has stopped a device to end after the device is gone."""

OWNER_TIMEOUT = 20.0
"""Seconds for udev to give a node to its ordinary user, by a program that it runs, which on a busy
machine takes longer than to make it."""

POLL = 0.005  # seconds between looks at /dev and /sys, whose changes cannot be waited for

_REFUSALS = (errno.EACCES, errno.EPERM)


def disk_name(number: int) -> str:
    """Return the kernel's name of a device."""
    return f"ublkb{number}"


def node(number: int) -> str:
    """Return the device's node."""
    return f"/dev/{disk_name(number)}"


class UblkAttachment(NodeUser):
    """A device that is being attached, is attached, or is being detached.

    Concurrency: any method may be called from any thread, except where it says otherwise.

    Args:
        info: of the device, which was made.
        block_size: bytes.
        queue: the settings of its request queue.
        features: of the driver.

    Attributes:
        index: N of /dev/ublkbN.
        path: the device node.
        info: what it was made with.
        ended: done once no request can come any more, and none is stuck.
        on_release: called to have the server close the queue; see :meth:`release_queue`.

    """

    def __init__(
        self, info: UblkDeviceInfo, block_size: int, queue: RequestQueue, features: Feature
    ) -> None:
        assert info.number is not None  # the driver has made it
        self.index = info.number
        super().__init__(disk_name(self.index), node(self.index))
        self.info = info
        self.ended: Future[int] = Future()
        self.on_release: Callable[[], object] = lambda: None
        self._queue_settings = queue
        self._block_size = block_size
        self._features = features
        self._device = ServedDevice(self.index, info.flags)
        self._char = -1
        # Held by START_DEV and STOP_DEV, as a mutex in the driver.
        self._starting = threading.Lock()
        self._is_stopped = False

    @property
    def queue(self) -> RequestQueue:
        """The settings of the request queue."""
        return self._queue_settings

    # Going live

    def open_char(self, seconds: float) -> None:
        """Open the node by which the device is served, which udev may have to make first. Blocks.

        Args:
            seconds: for it to appear; :data:`OWNER_TIMEOUT` more for it to become this user's.

        Raises:
            OSError: it does not appear, or is not this user's, or is open in another process.

        """
        path = control.char_node(self.index)
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._char = atfork.protect_fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            except OSError as exc:
                if exc.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EBUSY):
                    raise
                patience = OWNER_TIMEOUT if exc.errno in _REFUSALS else 0
                if time.monotonic() > deadline + patience:
                    number = sysfs.read(char_directory(self.index) / "dev")
                    raise OSError(exc.errno, _missing_node(path, exc.errno, "c", number)) from exc
            else:
                return
            time.sleep(POLL)

    def set_parameters(self, parameters: bytes) -> None:
        """Set what :func:`.commands.parameters` returns.

        Raises:
            OSError: the driver refuses.

        """
        self._device.set_parameters(parameters)

    def start(self) -> None:
        """No-op: :meth:`wait_until_live` starts it, when its queue has been opened."""

    def open_queue(self) -> Queue:
        """Return the queue, ready for requests. Call it in the thread that will serve them.

        Raises:
            OSError: the kernel refuses; see :class:`.Queue`.

        """
        return Queue(self._char, self.info, self._note_closed_queue)

    def _note_closed_queue(self, is_lost: bool) -> None:
        if not is_lost:
            self._mark_ended()
            return
        # This may be any thread, at any point of it (a garbage collection): nothing may block here,
        # and threading.Thread takes locks.
        try:
            _thread.start_new_thread(self._detach_lost, ())
        except RuntimeError:  # the interpreter exits
            self._detach_lost()

    def _detach_lost(self) -> None:
        """Detach from a device whose queue has ended with its thread or its event loop."""
        self.release_queue()  # the loop may be run again, by another thread
        self._mark_ended()
        with suppress(OSError):
            self.abandon()

    def _mark_ended(self) -> None:
        if not self.ended.done():
            self.ended.set_result(0)

    def wait_until_live(self, seconds: float) -> None:
        """Start the device; the kernel reads it, to look for partitions. Blocks.

        An ordinary user's device is not scanned for partitions.

        Args:
            seconds: for the server to answer what the kernel reads, and for the node to appear.

        Raises:
            TimeoutError: not live, or no node, after ``seconds``.
            OSError: the driver refuses, ECANCELED if the device was stopped before; or a setting
                of the request queue is refused.

        """
        deadline = time.monotonic() + seconds
        with self._starting:
            if self._is_stopped or self.ended.done():
                raise OSError(errno.ECANCELED, "it was stopped before it was live")
            self._go_live(seconds)
        self._wait_for_node(deadline)
        settings = self._queue_settings
        if Feature.UNPRIVILEGED_DEV in self.info.flags and settings == RequestQueue():
            return  # an ordinary user cannot set anything
        request_queue.apply(
            self._disk,
            {},
            scheduler=settings.scheduler,
            max_sectors_kb=self._largest_request(settings.max_sectors_kb),
            read_ahead_kb=settings.read_ahead_kb,
            # One tag less than there are: the driver notices the death of a server by a tag that
            # waits in the kernel, and if the server has them all, their requests hang for ever.
            nr_requests=self.info.depth - 1,
        )

    def _go_live(self, seconds: float) -> None:
        self._device.start(seconds)

    def _largest_request(self, kilobytes: int | None) -> int | None:
        return None if kilobytes is None else min(kilobytes, self.info.max_io // 1024)

    def _wait_for_node(self, deadline: float) -> None:
        # Those who wait for this to return have the whole time, and would not see the reason.
        deadline = min(deadline, time.monotonic() + OWNER_TIMEOUT)
        while error := _node_error(self.path, self.info.flags):
            if self.ended.done():
                raise OSError(errno.ECANCELED, "it was detached before it was live")
            if time.monotonic() > deadline:
                number = sysfs.attribute(self._disk, "dev")
                reason = _missing_node(self.path, error, "b", number)
                raise TimeoutError(errno.ETIMEDOUT, reason)
            time.sleep(POLL)

    # While it is live

    def set_size(self, blocks: int) -> None:
        """Have the kernel change the size: a step of :func:`.resizing.resize`. Blocks.

        Args:
            blocks: the new size, in blocks of the device.

        Raises:
            OSError: the driver refuses; EOPNOTSUPP if it cannot do that (before Linux 6.16).

        """
        if Feature.UPDATE_SIZE not in self._features:
            reason = "this kernel cannot resize a live ublk device; that takes Linux 6.16"
            raise OSError(errno.EOPNOTSUPP, reason, self.path)
        self._device.update_size(blocks * self._block_size // SECTOR, STOP_TIMEOUT)

    def _sync(self, fd: int) -> None:
        sync_in_child(self._disk, self.path, fd)

    def _sync_without_node(self) -> None:
        # STOP_DEV writes back all the same.
        pass

    # Detaching

    def disconnect(self) -> None:
        """Stop the device; returns when the kernel has written back all it has cached.

        Raises:
            OSError: the driver refuses.

        """
        self._stop()

    def disconnect_kernel(self) -> None:
        """Have :attr:`ended` come. No-op if the device was stopped.

        Raises:
            OSError: the driver refuses.

        """
        if not self.ended.done():
            self._stop()

    def _stop(self) -> None:
        with self._starting:
            self._is_stopped = True
            if self.ended.done():  # meanwhile: the number may be another device's by now
                return
            try:
                self._device.stop(STOP_TIMEOUT)
            except OSError as exc:
                if exc.errno != errno.ENODEV:  # it is gone
                    raise

    @property
    def forced_steps(self) -> Sequence[Callable[[], None]]:
        """What frees the device where stopping it hangs: the end of its queue."""
        return (self.release_queue,)

    def release_queue(self) -> None:
        """Have the server close the queue: what is in flight or comes after fails with EIO."""
        self.on_release()

    def undo(self) -> None:
        """Detach at once, from a device that is not served: nothing is written back.

        Raises:
            OSError: the driver does not give the number back.

        """
        self._mark_ended()
        self.close()

    def abandon(self) -> None:
        """Detach from a device that this process will not serve any more.

        Raises:
            OSError: the driver does not give the number back.

        """
        self.close()
        self.wait_until_free(0)

    def close(self) -> None:
        """Close the device, and give its number back. No-op: already closed.

        Call it only after :attr:`ended`.

        Raises:
            OSError: the driver refuses.

        """
        if not self._close_claim():
            return
        self._close_char()
        with suppress(TimeoutError):  # an ordinary user's DEL_DEV waits for all users
            self._delete()

    def _close_char(self) -> None:
        char, self._char = self._char, -1
        if char >= 0:
            atfork.close_protected(char)

    def _delete(self) -> None:
        try:
            self._device.delete()
        except OSError as exc:
            if exc.errno != errno.ENODEV:
                raise

    def wait_until_free(self, seconds: float) -> bool:
        """Wait until the number can be used again; False if it is taken after ``seconds``.

        Then waits for the end of what has stopped the device, for :data:`HELPER_TIMEOUT` at most.
        """
        self._wait_until_unused()
        deadline = time.monotonic() + seconds
        while char_directory(self.index).exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        # A process of its own, which may end a moment after the device; a thread waits for it.
        if self._starting.acquire(timeout=HELPER_TIMEOUT):
            self._starting.release()
        return True


def _node_error(path: str, flags: Feature) -> int:
    """Return why the node of a disk cannot be used yet, as an error number; 0 if it can."""
    if not os.path.exists(path):
        return errno.ENOENT
    # An ordinary user who is to use it gets it from udev, as the node that was opened before.
    is_users = Feature.UNPRIVILEGED_DEV in flags
    if is_users and not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        return errno.EACCES
    return 0


def _missing_node(path: str, error: int, kind: str, number: str | None) -> str:
    """Explain that a node cannot be opened; ``kind`` and ``number`` are those for mknod."""
    if error == errno.ENOENT:
        return (
            f"{path} does not appear; in a container nodes do not appear by themselves:"
            f" `mknod {path} {kind} {(number or 'MAJOR:MINOR').replace(':', ' ')}`"
        )
    if error == errno.EBUSY:
        return f"{path} is open in another process"
    return (
        f"{path} does not become this user's ({os.strerror(error)}): an administrator has to"
        " install udev rules for ublk (docs/how-to/ublk.md)"
    )


def char_directory(number: int) -> Path:
    """Return the directory in /sys of a /dev/ublkcN, which exists as long as the device."""
    return sysfs.SYS_BLOCK.parent / "class/ublk-char" / f"ublkc{number}"
