"""A device that is attached by netlink: the attachment, and the thread that monitors it.

The file ``pid`` in /sys names the thread that sent CONNECT. So each attachment has a thread of its
own (:class:`NetlinkMonitorThread`): it registers the device with the watchdog, attaches it, and
then receives the kernel's events of dead connections. :class:`NetlinkAttachment` does the rest.
"""

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
from .attachment import FORCE_TIMEOUT, AttachConfig, Attachment, socket_pair
from .watchdog import watchdog

RESEND_CHECK_INTERVAL_MS = 2000
"""Milliseconds after which the kernel checks whether a request has to be sent again on another
connection. The kernel rounds them up to whole seconds, and logs each request that takes longer."""

OPEN_TIMEOUT = 0.2
"""Seconds to wait for the node to open, before the device is disconnected without that."""

CLOSE_TIMEOUT = 2.0
"""Seconds for the node to open, and be closed, once the device is disconnected."""

DEFAULT_IO_TIMEOUT = "30000"
"""Milliseconds; ``io_timeout`` of a new queue (30 * HZ in blk_mq_init_allocated_queue)."""


class NetlinkMonitorThread:
    """A thread that attaches a device by netlink, and monitors it until it is released.

    It registers the device with the watchdog before it attaches it.

    Args:
        attach: called in the new thread; returns N of /dev/nbdN.
        survive: seconds for which the device is to outlive this process.

    Raises:
        OSError: as ``attach``; or the watchdog or netlink's events cannot be had.

    Attributes:
        index: N of /dev/nbdN.
        on_link_dead: called in the monitor thread when a connection has died without a disconnect.

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

    def watch(self, owner_token: str) -> None:
        """Have the watchdog check the owner of the device's lock (:func:`.locks.owner_token`)."""
        watchdog.watch(self._thread, self.index, self._survive, owner_token)

    def release(self, *, leave: bool = False) -> None:
        """Stop the thread, and wait for its end. No-op: already stopped.

        Args:
            leave: leave the device attached, for another server to take over.

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
            with closing(netlink.LinkDeadListener()) as listener:
                index = attach()
                watchdog.watch(self._thread, index, self._survive)
                attached.set_result(index)
                self._read_link_dead(listener, index)
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

    def _read_link_dead(self, listener: netlink.LinkDeadListener, index: int) -> None:
        """Call :attr:`on_link_dead` for each event of this device, until released."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._released, select.POLLIN)
        while all(fd != self._released for fd, _ in poll.poll()):
            with suppress(OSError):  # ENOBUFS: too many at once; those of others, most likely
                if index in listener.read():
                    self.on_link_dead()


class NetlinkAttachment(Attachment):
    """An attachment by netlink: no thread waits, and a stop of the process is but a pause.

    The kernel keeps a device whose server has died, and what is in flight hangs. So a watchdog
    process disconnects it. A device that is to survive its server waits for another one before.

    The node is not kept open: the kernel drops the page cache of a device when its last user closes
    it, and what was written below the cache (by device mapper, say) would not be what the next
    program reads. So DISCONNECT_ON_CLOSE is of no use: it would disconnect with the last close of
    any user. And since nothing keeps the index once another process has disconnected the device,
    each step that goes by the index is taken only while /sys names the same server, and where it
    matters with the node open, which keeps others from attaching the index meanwhile.

    A connection that is lost can be replaced (reconnect), by this process or by the next server.
    The kernel sends what was in flight on it again when the timer of the request next expires: it
    then looks whether the connection is still the same (nbd_xmit_timeout). So that timer is short
    where it does nothing else: with one connection, and no timeout.

    Attributes:
        is_served: returns whether the server will notice by itself that a connection has died; if
            not, the first dead connection ends the attachment.

    """

    def __init__(
        self, monitor: NetlinkMonitorThread, path: str, lock: int, config: AttachConfig
    ) -> None:
        """Become the owner of a device that its monitor has attached, and of its lock."""
        super().__init__(monitor.index, path, lock, config)
        self.ended = Future()
        self._server_thread = sysfs.server_thread(monitor.index)
        self.is_served: Callable[[], bool] = lambda: True
        self._dead_connections = threading.Semaphore(0)
        self._monitor = monitor
        monitor.on_link_dead = self._on_link_dead
        monitor.watch(locks.owner_token(lock))
        if config.survive:
            # Whatever its value was (an earlier server may have set it): the kernel's default.
            self._queue_before["io_timeout"] = DEFAULT_IO_TIMEOUT
            if len(config.sockets) == 1 and not config.timeout:
                request_queue.apply(
                    self.index, self._queue_before, io_timeout=RESEND_CHECK_INTERVAL_MS
                )

    @property
    def lock(self) -> int:
        """The descriptor of the lock of its index, to be handed over."""
        return self._lock

    def start(self) -> None:
        """No-op: the kernel sends requests since CONNECT."""

    def _open_live(self) -> None:
        with self._control():
            netlink.reconfigure(
                self.index,
                self._config.identity,
                # Those of an earlier server may differ.
                client_flags=netlink.ClientFlag(0),
                dead_conn_timeout=self._config.dead_conn_timeout,
            )
            self._apply_queue_settings()

    def _resize(self, blocks: int) -> None:
        size = blocks * self._config.block_size
        with self._control():
            netlink.reconfigure(self.index, self._config.identity, size=size)

    def _sync_without_node(self) -> None:
        os.sync()

    # Dead connections

    def has_died(self, seconds: float) -> bool:
        """Tell whether a connection that has ended died, rather than was removed by a command.

        NBD_CLEAR_SOCK drops the page cache, so a server must not reconnect after it as if nothing
        had happened; but the kernel would accept that. The kernel sends LINK_DEAD for connections
        that die by themselves only. In another network namespace it sends none: there each
        connection counts as dead.

        Args:
            seconds: for which to wait for the event.

        """
        return not status.receives_link_dead_events() or self._dead_connections.acquire(
            timeout=seconds
        )

    def replace_dead_connection(self, seconds: float) -> socket.socket | None:
        """Reconnect: offer the kernel a connection in place of a dead one."""
        deadline = time.monotonic() + seconds
        while True:
            self._check_is_ours()
            ours, theirs = socket_pair()
            try:
                if netlink.offer_connection(self.index, self._config.identity, ours, theirs):
                    # If another server's device took it, that finds it closed again.
                    self._check_is_ours()
                    return ours
            except BaseException:
                ours.close()
                raise
            ours.close()
            if time.monotonic() > deadline:
                return None
            time.sleep(sysfs.POLL)  # the kernel may not know yet that a connection has died

    def _on_link_dead(self) -> None:
        self._dead_connections.release()
        if not self.is_served():
            self._end()

    # Detaching

    def disconnect_kernel(self) -> None:
        """Have the kernel disconnect the device: it would wait for other sockets."""
        # With the node open no process can attach the index between a look and the disconnect. But
        # open() blocks while another program waits in one for an answer, which it will not get.
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
        """Have the kernel disconnect the device, without opening the node."""
        if self._is_ours():
            netlink.disconnect(self.index, timeout=FORCE_TIMEOUT)

    def abandon(self) -> None:
        """Detach; a device that is to survive waits for another server from now on."""
        if self._config.survive:
            self.detach()
        else:
            super().abandon()

    def detach(self) -> None:
        """Close the device but leave it attached, until another server comes or its time is up."""
        self._close_claim()
        self._monitor.release(leave=True)
        self._unlock()
        self._end()

    def _close_node(self) -> None:
        """No-op: the node is not kept open."""

    def _end(self) -> None:
        with suppress(InvalidStateError):
            self.ended.set_result(0)

    # The node, and whose it is

    @contextmanager
    def _control(self) -> Iterator[int]:
        """Open the node for a step, and only if the device behind it is still the same.

        While it is open no other process can attach the index (config_refs in nbd_genl_connect).
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
        """Tell whether the index was not attached by another server after a disconnect."""
        return self._server_thread is None or sysfs.server_thread(self.index) == self._server_thread

    def _check_is_ours(self) -> None:
        if not self._is_ours():
            raise OSError(errno.ENODEV, "another process has disconnected the device")


def _close(opening: Future[int]) -> None:
    if opening.exception() is None:
        atfork.close_protected(opening.result())
