"""A device that is attached by netlink."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, InvalidStateError
from contextlib import closing, contextmanager, suppress

from .. import atfork
from ..threads import run_in_daemon_thread
from . import locks, netlink, request_queue, status, sysfs
from .attachment import AttachConfig, Attachment, socket_pair
from .watchdog import watchdog

RESEND_CHECK_INTERVAL_MS = 2000
"""Milliseconds between looks at a request whether it has to be sent again on another connection.
The kernel rounds them up to whole seconds, and logs each request that takes longer."""

OPEN_TIMEOUT = 0.2
"""Seconds to wait for the node to open before the device is disconnected without."""

CLOSE_TIMEOUT = 2.0
"""Seconds for it to open, and be closed, once there is nobody more who could answer."""

DEFAULT_IO_TIMEOUT = "30000"
"""Milliseconds; what it is in a new queue (30 * HZ in blk_mq_init_allocated_queue)."""


class NetlinkAttachment(Attachment):
    """Attached by netlink: no thread waits, and a stop of the process is but a pause.

    The kernel keeps a device whose server has died, and what is in flight hangs. So a watchdog
    disconnects it. A device that is to survive its server waits for another one before.

    The node is not kept open: the kernel drops what it has cached for a device when the last user
    closes that, and what was written below the cache (by device mapper, say) would not be what the
    next program reads. So DISCONNECT_ON_CLOSE is of no use: it would disconnect with the last close
    of any user. And since nothing keeps the index once somebody else has disconnected the device,
    whatever is done to that by its index is done only while /sys names the same server, and where
    it matters with the node open, which keeps others from attaching it meanwhile.

    A connection that is lost can be replaced, by this process or by another one after it. What was
    in flight on it is sent again when its timer goes off next: the kernel looks then whether the
    connection is still the same (nbd_xmit_timeout). So that timer is short where it does no more
    than that: with one connection, and no timeout.

    Attributes:
        is_served: tells whether there is somebody who will notice that a connection has died.

    """

    def __init__(
        self, monitor: NetlinkMonitorThread, path: str, lock: int, terms: AttachConfig
    ) -> None:
        """Take over a device that is attached."""
        super().__init__(monitor.index, path, lock, terms)
        self.ended = Future()
        self._server_thread = sysfs.server_thread(monitor.index)
        self.is_served: Callable[[], bool] = lambda: True
        self._link_dead_listener = threading.Semaphore(0)
        self._monitor = monitor
        monitor.on_link_dead = self._on_link_dead
        monitor.watch(locks.owner_token(lock))
        if terms.survive:
            # Whatever it was before (a predecessor may have set it): the kernel's default.
            self._queue_before["io_timeout"] = DEFAULT_IO_TIMEOUT
            if len(terms.sockets) == 1 and not terms.timeout:
                request_queue.apply(
                    self.index, self._queue_before, io_timeout=RESEND_CHECK_INTERVAL_MS
                )

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
        return not status.receives_link_dead_events() or self._link_dead_listener.acquire(
            timeout=seconds
        )

    def replace_dead_connection(self, seconds: float) -> socket.socket | None:
        """Offer the kernel a connection in place of one that is dead."""
        deadline = time.monotonic() + seconds
        while True:
            self._check_is_ours()
            ours, theirs = socket_pair()
            try:
                if netlink.offer_connection(self.index, self._terms.identity, ours, theirs):
                    self._check_is_ours()  # another's would find it closed again
                    return ours
            except BaseException:
                ours.close()
                raise
            ours.close()
            if time.monotonic() > deadline:
                return None
            time.sleep(sysfs.POLL)  # it may not know yet that one has died

    def abandon(self) -> None:
        """Let go; a device that is to survive waits for another server from now on."""
        if self._terms.survive:
            self.detach()
        else:
            super().abandon()

    @property
    def lock(self) -> int:
        """The descriptor of the lock of its index, to be handed on."""
        return self._lock

    def detach(self) -> None:
        """Close the device, and leave it attached: to another server, or to its time's end."""
        self._close_claim()
        self._monitor.release(leave=True)
        self._unlock()
        self._end()

    def _open_live(self) -> None:
        with self._control():
            netlink.reconfigure(
                self.index,
                self._terms.identity,
                # Of a predecessor's these may be others.
                client_flags=netlink.ClientFlag(0),
                dead_conn_timeout=self._terms.dead_conn_timeout,
            )
            self._apply_queue_settings()

    def _resize(self, blocks: int) -> None:
        size = blocks * self._terms.block_size
        with self._control():
            netlink.reconfigure(self.index, self._terms.identity, size=size)

    def _close_node(self) -> None:
        """It is not open."""

    def _sync_without_node(self) -> None:
        os.sync()

    @contextmanager
    def _control(self) -> Iterator[int]:
        """The node, opened for this, and only if the device behind it is still the same.

        While it is open nobody else can attach the index (config_refs in nbd_genl_connect).
        """
        with self._guard:
            if self._closed:
                raise OSError(errno.ENODEV, "the device is already detached")
            fd = -1 if self._claim is None else atfork.protect_fd(os.dup(self._claim))
        with self._using_node():
            if fd < 0:
                fd = atfork.open_protected(self.path)
            try:
                self._check_is_ours()
                yield fd
            finally:
                atfork.close_protected(fd)

    def _is_ours(self) -> bool:
        """Whether the index has not been given to another server since somebody disconnected it."""
        return self._server_thread is None or sysfs.server_thread(self.index) == self._server_thread

    def _check_is_ours(self) -> None:
        if not self._is_ours():
            raise OSError(errno.ENODEV, "somebody else has disconnected the device")

    def disconnect_kernel(self) -> None:
        """Have the kernel let go: it would wait for other sockets."""
        # With the node open nobody can attach the index between a look and the disconnect. But an
        # open waits where another program waits in one for an answer, which it does not get now.
        opening = run_in_daemon_thread(atfork.open_protected, self.path)
        futures.wait([opening], OPEN_TIMEOUT)
        try:
            self.force_disconnect()
        finally:
            opening.add_done_callback(_close)
            futures.wait([opening], CLOSE_TIMEOUT)
        self._monitor.release()
        self._end()

    def force_disconnect(self) -> None:
        """Have the kernel let go, without opening the node."""
        if self._is_ours():
            netlink.disconnect(self.index, timeout=5)

    def _on_link_dead(self) -> None:
        self._link_dead_listener.release()
        if not self.is_served():
            self._end()

    def _end(self) -> None:
        with suppress(InvalidStateError):
            self.ended.set_result(0)


def _close(opening: Future[int]) -> None:
    if opening.exception() is None:
        atfork.close_protected(opening.result())


class NetlinkMonitorThread:
    """One attachment by netlink, watched over from before it is made.

    Args:
        attach: called in the anchor's thread; returns N of /dev/nbdN.
        survive: seconds for which the device is to outlive this process.

    Raises:
        OSError: as ``attach``.

    Attributes:
        index: N of /dev/nbdN.
        on_link_dead: called in the anchor's thread when a connection has died, and nobody has asked for
            it.

    """

    def __init__(self, attach: Callable[[], int], survive: float) -> None:
        self.on_link_dead: Callable[[], None] = lambda: None
        self._survive = survive
        self._ended = threading.Event()
        self._released = os.eventfd(0, os.EFD_CLOEXEC)
        self._guard = threading.Lock()
        self._thread = 0
        attached: Future[int] = Future()
        run_in_daemon_thread(self._run, attach, attached)
        try:
            self.index = attached.result()
        except BaseException:
            self.release()
            raise

    def watch(self, signature: str) -> None:
        """Tell the watchdog with what the lock of the device was signed."""
        watchdog.watch(self._thread, self.index, self._survive, signature)

    def release(self, *, leave: bool = False) -> None:
        """Let the thread end. Does nothing the second time.

        Args:
            leave: the device is not disconnected, but left to whoever comes for it.

        """
        if leave:
            watchdog.release_to_successor(self._thread)
        with self._guard:
            if self._released >= 0:
                os.eventfd_write(self._released, 1)
        if threading.get_native_id() != self._thread:
            self._ended.wait()

    def _run(self, attach: Callable[[], int], attached: Future[int]) -> None:
        self._thread = threading.get_native_id()
        try:
            watchdog.watch_pending(self._thread)
            with closing(netlink.LinkDeadListener()) as deaths:
                index = attach()
                watchdog.watch(self._thread, index, self._survive)
                attached.set_result(index)
                self._read_link_dead(deaths, index)
        except BaseException as exc:
            if attached.done():
                raise
            attached.set_exception(exc)
        finally:
            watchdog.forget(self._thread)
            with self._guard:
                os.close(self._released)
                self._released = -1
            self._ended.set()

    def _read_link_dead(self, deaths: netlink.LinkDeadListener, index: int) -> None:
        poll = select.poll()
        poll.register(deaths, select.POLLIN)
        poll.register(self._released, select.POLLIN)
        while all(fd != self._released for fd, _ in poll.poll()):
            with suppress(OSError):  # ENOBUFS: too many at once; those of others, most likely
                if index in deaths.read():
                    self.on_link_dead()
