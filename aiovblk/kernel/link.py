"""One attachment of one /dev/nbdN, from the first call to the last close.

All functions here block, and some wait for requests that the server has to answer. None may be
called in the thread of the event loop that serves the device.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress

from .. import forks
from ..errors import DeviceBusyError
from ..threads import in_thread
from . import liveness, locks, netlink, partitions, queue, sysfs
from .anchor import Anchor
from .ioctl import Ioctl, ioctl, syncfs
from .pairs import socket_pair
from .shrinking import Claims, claim_beyond
from .terms import Terms

logger = logging.getLogger("aiovblk")

POLL = 0.002  # seconds between looks at /sys, which cannot be waited on

REPLAY_AFTER = 2000
"""Milliseconds between looks at a request whether it has to be sent again on another connection.
The kernel rounds them up to whole seconds, and logs each request that takes longer."""

DEFAULT_IO_TIMEOUT = "30000"
"""Milliseconds; what it is in a new queue (30 * HZ in blk_mq_init_allocated_queue)."""


class Link(ABC):
    """A device that is being attached, is attached, or is being detached.

    Concurrency: any method may be called from any thread, except where it says otherwise.

    Attributes:
        index: N of /dev/nbdN.
        path: the device node.
        ended: done once the kernel has let go of the sockets and no request is stuck any more; its
            result is the error number of the call that stayed until then, or 0.

    """

    ended: Future[int]

    def __init__(self, index: int, path: str, lock: int, terms: Terms) -> None:
        """Take over a lock; see :func:`~aiovblk.kernel.choice.attach`, which makes these."""
        self.index = index
        self.path = path
        self._terms = terms
        self._lock = lock
        self._claim: int | None = None
        self._queue_before: dict[str, str] = {}
        self._guard = threading.Lock()
        self._closed = False
        self._server: int | None = None
        self._fd = -1

    @abstractmethod
    def start(self) -> None:
        """Let the kernel send requests, where it does not yet."""

    def resize(self, blocks: int) -> None:
        """Change the size of the live device. Since Linux 6.12 it waits for requests in flight."""
        self._resize(blocks)
        # A change of the size sets it back since then (blk_apply_bdi_limits).
        try:
            queue.change(self.index, {}, read_ahead_kb=self._terms.queue.read_ahead_kb)
        except OSError as exc:
            # It has the new size all the same, and whoever asked for that has to know it.
            logger.warning("the read-ahead is not what it was before the resize: %s", exc)

    def claim_beyond(self, size: int, claims: Claims) -> None:
        """Claim what reaches beyond a smaller size, in bytes.

        Raises:
            DeviceBusyError, OSError: as :func:`aiovblk.kernel.shrinking.claim_beyond`.

        """
        claim_beyond(self.index, self.path, size, claims)

    @abstractmethod
    def _resize(self, blocks: int) -> None:
        """Change the size."""

    @abstractmethod
    def finish(self) -> None:
        """Have :attr:`ended` come, our ends of the sockets being closed."""

    def offer(self, seconds: float) -> socket.socket | None:
        """Offer the kernel a connection in place of one that is dead.

        Args:
            seconds: for which to wait until one is.

        Returns:
            The server's end of it, on which requests come at once; None where none is dead.

        Raises:
            OSError: the device is no longer attached, or its connections cannot be replaced.

        """
        raise OSError(errno.EOPNOTSUPP, "a device that was attached by ioctl ends with it")

    def forsake(self) -> None:
        """Let go of a device that this process will not serve any more, nor unmount."""
        self.finish()
        self.close()
        self.wait_until_free(0)

    def _shape_queue(self) -> None:
        """Set what requests look like; waits until none is in flight."""
        queue.change(
            self.index,
            self._queue_before,
            scheduler=self._terms.queue.scheduler,
            max_sectors_kb=self._terms.queue.max_sectors_kb,
        )

    def wait_until_live(self, seconds: float) -> None:
        """Wait until the device can be read, and the kernel has scanned it for partitions.

        The first open of an attached device does that (unless the driver was loaded with
        ``max_part=0``), so it reads; it does not return before the server has answered. What the
        scan finds is not said: a table that could not be read is as good as none.

        Raises:
            TimeoutError: not live after ``seconds``.
            OSError: NBD_DO_IT returned at once.

        """
        deadline = time.monotonic() + seconds
        while sysfs.server_thread(self.index) is None or not sysfs.size(self.index):
            if self.ended.done():
                number = self.ended.result() or errno.EIO
                raise OSError(number, f"NBD_DO_IT: {os.strerror(number)}")
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the kernel did not start the device")
            time.sleep(POLL)
        self._server = sysfs.server_thread(self.index)
        self._open_live()
        queue.change(self.index, self._queue_before, read_ahead_kb=self._terms.queue.read_ahead_kb)

    def wait_for_partitions(self, seconds: float) -> None:
        """Wait until each partition can be opened, when the device is live.

        Raises:
            AttachError, OSError: as :func:`aiovblk.kernel.partitions.wait_for_nodes`.

        """
        partitions.wait_for_nodes(self.index, self.path, seconds)

    @abstractmethod
    def _open_live(self) -> None:
        """Open the node of the device, which can be read by now."""

    def claim(self) -> None:
        """Make sure that nobody uses the device, and that nobody begins to.

        Raises:
            DeviceBusyError: a file system on it is mounted, or something else holds it or one of
                its partitions exclusively. Mere readers and writers do not count.

        """
        try:
            claim = _open(self.path, os.O_EXCL)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            raise busy(self.index, self.path) from None
        with self._guard:
            if not self._closed:
                self._claim = claim
                return
        forks.close(claim)  # opened too late: the device has been detached meanwhile

    def sync(self) -> None:
        """Have everything written that the kernel still caches for the device.

        Raises:
            OSError: some of it could not be written, and is lost; and nobody has been told yet.

        """
        # A descriptor of its own: one that was open when a write failed is told so even after the
        # program that wrote has been (the kernel's errseq_t).
        try:
            fd = _open(self.path)
        except OSError:  # the node is gone, say
            with self._control() as old:
                sync(self.index, old)
            return
        try:
            sync(self.index, fd)
        finally:
            forks.close(fd)

    def disconnect(self) -> None:
        """Have the kernel send DISC. Nothing else happens before the server closes its socket."""
        with self._control() as fd:
            ioctl(fd, Ioctl.NBD_DISCONNECT)

    def clear_socket(self) -> None:
        """Take the socket from the device: whatever is in flight or comes after fails with EIO."""
        with self._control() as fd:
            ioctl(fd, Ioctl.NBD_CLEAR_SOCK)

    def rescue(self) -> None:
        """Free a device that :meth:`clear_socket` could not free, without opening its node.

        Raises:
            OSError: the kernel refused, or did not answer.

        """
        netlink.disconnect(self.index, timeout=5)

    def close(self) -> None:
        """Close the device, and give its index back. Does nothing the second time.

        Only after :attr:`ended`: before, closing can wait for requests that nobody answers.
        """
        with self._guard:
            fd, self._fd = self._fd, -1
            self._closed = True
        if fd < 0:
            return
        had_partitions = bool(sysfs.partitions(self.index))
        for each in (self._claim, fd):
            if each is not None:
                forks.close(each)
        with suppress(OSError):
            queue.change(self.index, {}, **self._queue_before)
        if had_partitions:
            with suppress(OSError):
                partitions.forget(self.index, self.path)

    def wait_until_free(self, seconds: float) -> bool:
        """Wait until the index can be attached again, then let others try.

        Returns:
            False when somebody still has the node open after ``seconds``. (By netlink another
            server may have attached it meanwhile, since the kernel knows nothing of our locks.)

        """
        free = wait_until_free(self.index, seconds, self._server)
        self._unlock()
        return free

    def _unlock(self) -> None:
        with self._guard:
            lock, self._lock = self._lock, -1
        if lock >= 0:
            forks.close(lock)

    @contextmanager
    def _control(self) -> Iterator[int]:
        """A duplicate of the descriptor, so that a close meanwhile cannot give it another file."""
        with self._guard:
            if self._fd < 0:
                raise OSError(errno.ENODEV, "the device is already detached")
            fd = forks.withhold(os.dup(self._fd))
        try:
            yield fd
        finally:
            forks.close(fd)


class IoctlLink(Link):
    """Attached by ioctl, with a thread that stays in NBD_DO_IT.

    When the process dies, however, the kernel fails what is in flight and lets go at once. But any
    stop of that thread ends the device too: Ctrl-Z, a debugger, a frozen container, a suspend.
    """

    def __init__(self, index: int, path: str, lock: int, terms: Terms) -> None:
        """Hand the kernel its ends of the socket pairs, then all it has to know.

        SET_SOCK goes first: it is what decides between two who want the same device. Only the
        thread that made the first may make the others.

        Raises:
            OSError: EBUSY when somebody else was first, EPERM without CAP_SYS_ADMIN.
            AttachError: the kernel refuses what is wanted of its queue.

        """
        super().__init__(index, path, lock, terms)
        # Read-only is enough for each ioctl and for fsync, and closing such a descriptor does not
        # make udev probe the device.
        self._fd = _open(path)
        try:
            ioctl(self._fd, Ioctl.NBD_SET_SOCK, terms.sockets[0])
            self._configure(terms)
        except BaseException:
            self.close()
            raise

    def _configure(self, terms: Terms) -> None:
        try:
            for sock in terms.sockets[1:]:
                ioctl(self._fd, Ioctl.NBD_SET_SOCK, sock)
            ioctl(self._fd, Ioctl.NBD_SET_BLKSIZE, terms.block_size)
            ioctl(self._fd, Ioctl.NBD_SET_SIZE_BLOCKS, terms.blocks)
            ioctl(self._fd, Ioctl.NBD_SET_FLAGS, terms.flags)
            # Always: what was set before survives in the queue's own timeout.
            ioctl(self._fd, Ioctl.NBD_SET_TIMEOUT, terms.timeout)
            self._shape_queue()  # now, while nothing can be in flight
        except OSError:
            # Only now is the device known to be ours to clear.
            ioctl(self._fd, Ioctl.NBD_CLEAR_SOCK)
            raise

    def start(self) -> None:
        """Let the kernel send requests, from a thread that stays in NBD_DO_IT until the end."""
        self.ended = in_thread(self._do_it)

    def _open_live(self) -> None:
        # Once more NBD_DO_IT asks for a scan after the device can be read, but before it releases
        # config_lock (nbd_start_device_ioctl). Whoever opened it second would have the partitions
        # taken away for a moment. This does nothing but wait for the lock.
        with self._control() as fd:
            ioctl(fd, Ioctl.NBD_CLEAR_QUE)
        forks.close(_open(self.path))

    def _resize(self, blocks: int) -> None:
        with self._control() as fd:
            ioctl(fd, Ioctl.NBD_SET_SIZE_BLOCKS, blocks)

    def finish(self) -> None:
        """NBD_DO_IT returns by itself."""

    def _do_it(self) -> int:
        result = 0
        try:
            ioctl(self._fd, Ioctl.NBD_DO_IT)
        except OSError as exc:
            result = exc.errno or errno.EIO
        finally:
            # When our end of the socket closes, requests in flight are not failed but forgotten,
            # and whoever waits for them hangs (nbd_start_device_ioctl). This fails them. It is
            # refused where the process has given up its privileges; closing has to do then.
            with suppress(OSError):
                self.clear_socket()
        return result


class NetlinkLink(Link):
    """Attached by netlink: no thread waits, and a stop of the process is but a pause.

    The kernel keeps a device whose server has died, and what is in flight hangs. So it is told to
    disconnect with the last close of the node, which we have open; and for those who have it open
    beside us, a watchdog disconnects it. A device that is to survive its server waits for another
    one before, and is not told.

    A connection that is lost can be replaced, by this process or by another one after it. What was
    in flight on it is sent again when its timer goes off next: the kernel looks then whether the
    connection is still the same (nbd_xmit_timeout). So that timer is short where it does no more
    than that: with one connection, and no timeout.

    Attributes:
        is_served: tells whether there is somebody who will notice that a connection has died.

    """

    def __init__(self, anchor: Anchor, path: str, lock: int, terms: Terms) -> None:
        """Take over a device that is attached."""
        super().__init__(anchor.index, path, lock, terms)
        self.ended = Future()
        self.is_served: Callable[[], bool] = lambda: True
        self._deaths = threading.Semaphore(0)
        self._anchor = anchor
        anchor.on_death = self._on_death
        anchor.watch(locks.signature(lock))
        if terms.survive:
            # Whatever it was before (a predecessor may have set it): the kernel's default.
            self._queue_before["io_timeout"] = DEFAULT_IO_TIMEOUT
            if len(terms.sockets) == 1 and not terms.timeout:
                queue.change(self.index, self._queue_before, io_timeout=REPLAY_AFTER)

    def start(self) -> None:
        """It has begun."""

    def has_died(self, seconds: float) -> bool:
        """Whether a connection that has ended died, and was not taken away by somebody.

        NBD_CLEAR_SOCK drops what the kernel has cached, so nobody may go on after that as if
        nothing had happened; but the kernel would let him. It tells of those that die by
        themselves. In another network namespace it tells nobody: there all have.

        Args:
            seconds: for which to wait until it does.

        """
        return not liveness.hears_of_deaths() or self._deaths.acquire(timeout=seconds)

    def offer(self, seconds: float) -> socket.socket | None:
        """Offer the kernel a connection in place of one that is dead."""
        deadline = time.monotonic() + seconds
        while True:
            ours, theirs = socket_pair()
            try:
                if netlink.offer(self.index, self._terms.identity, ours, theirs):
                    return ours
            except BaseException:
                ours.close()
                raise
            ours.close()
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL)  # it may not know yet that one has died

    def forsake(self) -> None:
        """Let go; a device that is to survive waits for another server from now on."""
        if self._terms.survive:
            self.leave()
        else:
            super().forsake()

    @property
    def lock(self) -> int:
        """The descriptor of the lock of its index, to be handed on."""
        return self._lock

    def leave(self) -> None:
        """Close the device, and leave it attached: to another server, or to its time's end."""
        with self._guard:
            fd, self._fd = self._fd, -1
            self._closed = True
        for each in (self._claim, fd):
            if each is not None and each >= 0:
                forks.close(each)
        self._anchor.release(leave=True)
        self._unlock()
        self._end()

    def _open_live(self) -> None:
        fd = _open(self.path)
        with self._guard:
            if not self._closed:
                self._fd, fd = fd, -1
        if fd >= 0:  # opened too late
            forks.close(fd)
            return
        flags = netlink.ClientFlag(0)
        if not self._terms.survive:
            # Not before: with this flag anybody's last close would have disconnected it.
            flags = netlink.ClientFlag.DISCONNECT_ON_CLOSE
        netlink.reconfigure(
            self.index,
            self._terms.identity,
            client_flags=flags,
            dead_conn_timeout=self._terms.dead_conn_timeout,  # that of a predecessor may differ
        )
        self._shape_queue()

    def _resize(self, blocks: int) -> None:
        size = blocks * self._terms.block_size
        # With the node open nobody else can attach the index while this goes on.
        with self._control():
            netlink.reconfigure(self.index, self._terms.identity, size=size)

    def finish(self) -> None:
        """Have the kernel let go: it would wait for other sockets."""
        netlink.disconnect(self.index)
        self._anchor.release()
        self._end()

    def _on_death(self) -> None:
        self._deaths.release()
        if not self.is_served():
            self._end()

    def _end(self) -> None:
        with suppress(InvalidStateError):
            self.ended.set_result(0)


def _open(path: str, flags: int = 0) -> int:
    """Open a node, or what is mounted of it, for this process alone."""
    return forks.withhold(os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags))


def wait_until_free(index: int, seconds: float, server: int | None = None) -> bool:
    """Wait until a device is no longer attached; false if it still is after ``seconds``.

    Args:
        index: of the device.
        seconds: for which to wait.
        server: the thread that attached it (:func:`.sysfs.server_thread`): if it has been attached
            by another one since, it was free. None for whoever it is.

    """
    deadline = time.monotonic() + seconds
    while not sysfs.is_free(index):
        if server is not None and sysfs.server_thread(index) not in (None, server):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def busy(index: int, path: str) -> DeviceBusyError:
    """The exception that names who uses a device."""
    holders = sysfs.holders(index)
    reason = "the device is in use" + (f": {', '.join(holders)}" if holders else "")
    return DeviceBusyError(errno.EBUSY, reason, path, holders)


def sync(index: int, fd: int) -> None:
    """Write back what is cached for a device: file systems first, then partitions, then itself.

    Each partition has a page cache of its own, and a mounted file system keeps what it has not
    written in neither.

    Raises:
        OSError: the last error, after everything was tried.

    """
    failure: OSError | None = None
    for point in sysfs.mount_points(index):
        failure = _sync_path(point, file_system=True) or failure
    for name in sysfs.partitions(index):
        failure = _sync_path(f"/dev/{name}", file_system=False) or failure
    os.fsync(fd)
    if failure is not None:
        raise failure


def _sync_path(path: str, *, file_system: bool) -> OSError | None:
    try:
        fd = _open(path)
    except OSError as exc:
        # A partition without a node in this container, a mount of another namespace.
        logger.debug("cannot sync %s: %s", path, exc)
        return None
    try:
        if file_system:
            syncfs(fd)
        else:
            os.fsync(fd)
    except OSError as exc:
        return exc
    finally:
        forks.close(fd)
    return None
