"""The attachment of one /dev/nbdN, from the first call to the last close.

What both ways to attach have in common; each has a subclass (:mod:`.ioctl_attachment`,
:mod:`.netlink_attachment`).

Invariant: nearly everything here blocks, and some of it waits for requests that the server has to
answer. None of it may be called in the thread of the event loop that serves the device.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

from .. import atfork
from . import netlink, partitions, request_queue, sysfs
from .ioctl import Ioctl, ioctl
from .node_user import NodeUser
from .request_queue import RequestQueue
from .sysfs import wait_until_free

FORCE_TIMEOUT = 5.0
"""Seconds for the kernel to answer a forced disconnect, by netlink."""

SOCKET_BUFFER = 4 * 1024 * 1024
"""Bytes of each socket's send buffer; the default of 208 KiB makes large requests wait."""

_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h; Python has no name for it


@dataclass(frozen=True, slots=True)
class AttachConfig:
    """What the kernel has to know to attach a device.

    Args:
        sockets: descriptors of the kernel's ends; several need CAN_MULTI_CONN among the flags.
        block_size: bytes.
        blocks: size of the device in blocks.
        flags: the NBD specification's transmission flags.
        timeout: seconds after which the kernel drops a connection that does not answer a request;
            0 for its default: never with one connection, 30 with several.
        queue: settings of the request queue.
        dead_conn_timeout: seconds for which requests wait when no connection is left, before they
            fail; by netlink only.
        survive: seconds for which the device outlives its server; by netlink only.
        identity: the name by which the next server finds the device then; by netlink only.

    """

    sockets: Sequence[int]
    block_size: int
    blocks: int
    flags: int
    timeout: int
    queue: RequestQueue
    dead_conn_timeout: int = 0
    survive: float = 0
    identity: str | None = None


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Make the two ends of a connection: the server's, and the kernel's."""
    ends = socket.socketpair()
    for end in ends:
        atfork.protect_socket(end)
        try:
            # Beyond net.core.wmem_max, which takes CAP_NET_ADMIN.
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SOCKET_BUFFER)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
    return ends


class Attachment(NodeUser):
    """A device that is being attached, is attached, or is being detached.

    Concurrency: any method may be called from any thread, except where it says otherwise.

    Attributes:
        index: N of /dev/nbdN.
        path: the device node.
        config: what it was attached with.
        ended: done once the kernel has released the sockets and no request is stuck any more. By
            ioctl its result is the error number of NBD_DO_IT, or 0; by netlink it is 0.

    """

    ended: Future[int]

    def __init__(self, index: int, path: str, lock: int, config: AttachConfig) -> None:
        """Become the owner of a lock; :func:`.attaching.attach` makes attachments."""
        super().__init__(index, path)
        self.index = index
        self.config = config
        self._lock = lock
        self._queue_before: dict[str, str] = {}
        self._server_thread: int | None = None

    @property
    def queue(self) -> RequestQueue:
        """The settings of the request queue."""
        return self.config.queue

    # Going live

    @abstractmethod
    def start(self) -> None:
        """Have the kernel send requests, if it does not yet."""

    def wait_until_live(self, seconds: float) -> None:
        """Wait until the device can be read, and the kernel has scanned it for partitions.

        The first open of an attached device does the scan (unless the driver was loaded with
        ``max_part=0``), so it reads; it does not return before the server has answered. The
        result of the scan is not reported: a table that could not be read counts as none.

        Raises:
            TimeoutError: not live after ``seconds``.
            OSError: the attachment ended at once, or was closed meanwhile.

        """
        deadline = time.monotonic() + seconds
        while sysfs.server_thread(self.index) is None or not sysfs.size(self.index):
            if self._closed:
                raise OSError(errno.ECANCELED, "it was detached before it was live")
            if self.ended.done():
                number = self.ended.result() or errno.EIO
                reason = os.strerror(number)
                raise OSError(number, f"the kernel ended it before it was live: {reason}")
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the kernel did not start the device")
            time.sleep(sysfs.POLL)
        if self._server_thread is None:
            self._server_thread = sysfs.server_thread(self.index)
        self._open_live()
        request_queue.apply(
            self.index, self._queue_before, read_ahead_kb=self.config.queue.read_ahead_kb
        )

    @abstractmethod
    def _open_live(self) -> None:
        """Open the node of the device, which can be read by now."""

    def _apply_queue_settings(self) -> None:
        """Set the form of requests; waits until none is in flight."""
        request_queue.apply(
            self.index,
            self._queue_before,
            scheduler=self.config.queue.scheduler,
            max_sectors_kb=self.config.queue.max_sectors_kb,
        )

    # While it is live

    @abstractmethod
    def set_size(self, blocks: int) -> None:
        """Have the kernel change the size: a step of :func:`.resizing.resize`."""

    # Detaching

    def disconnect(self) -> None:
        """Have the kernel send DISC. Nothing else happens before the server closes its socket."""
        with self._control() as fd:
            ioctl(fd, Ioctl.NBD_DISCONNECT)

    def clear_socket(self) -> None:
        """Take the socket from the device: what is in flight or comes after fails with EIO."""
        with self._control() as fd:
            ioctl(fd, Ioctl.NBD_CLEAR_SOCK)

    @abstractmethod
    def disconnect_kernel(self) -> None:
        """Have :attr:`ended` come, now that the server's ends of the sockets are closed."""

    def force_disconnect(self) -> None:
        """Free a device that :meth:`clear_socket` could not free, without opening its node.

        Raises:
            OSError: the kernel refused, or did not answer.

        """
        netlink.disconnect(self.index, timeout=FORCE_TIMEOUT)

    @property
    def forced_steps(self) -> Sequence[Callable[[], None]]:
        """What frees the device where :meth:`disconnect_kernel` does not, strongest last."""
        return self.clear_socket, self.force_disconnect

    def undo(self) -> None:
        """Detach at once, from a device that is not served: nothing is written back."""
        self.disconnect_kernel()
        self.close()
        self.wait_until_free(0)

    def abandon(self) -> None:
        """Detach from a device that this process will neither serve any more, nor unmount."""
        self.undo()

    def close(self) -> None:
        """Close the device, and restore its queue's settings. No-op: already closed.

        Call it only after :attr:`ended`: before, closing can wait for requests that nothing
        answers.
        """
        if not self._close_claim():
            return
        had_partitions = bool(sysfs.partitions(self.index))
        self._close_node()
        if sysfs.server_thread(self.index) in (None, self._server_thread):
            with suppress(OSError):
                request_queue.apply(self.index, {}, **self._queue_before)
        if had_partitions:
            with suppress(OSError):
                partitions.drop_partitions(self.index, self.path)

    @abstractmethod
    def _close_node(self) -> None:
        """Close the node, if it is open for as long as the device lives."""

    def wait_until_free(self, seconds: float) -> bool:
        """Wait until the index can be attached again, then release its lock.

        Returns:
            False if a program still has the node open after ``seconds``. (By netlink another server
            may have attached it meanwhile, since the kernel knows nothing of our locks.)

        """
        self._wait_until_unused()
        free = wait_until_free(self.index, seconds, self._server_thread)
        self._unlock()
        return free

    def _unlock(self) -> None:
        with self._guard:
            lock, self._lock = self._lock, -1
        if lock >= 0:
            atfork.close_protected(lock)

    # The node

    @abstractmethod
    def _control(self) -> AbstractContextManager[int]:
        """Open the node for ioctls.

        Raises:
            OSError: the device is already detached.

        """
