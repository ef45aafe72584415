"""A device that is attached by netlink."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress

from .. import atfork
from ..threads import run_in_daemon_thread
from . import locks, netlink, reconnecting, sysfs
from .attachment import FORCE_TIMEOUT, AttachConfig, Attachment
from .monitor import NetlinkMonitorThread

OPEN_TIMEOUT = 0.2
"""Seconds to wait for the node to open, before the device is disconnected without that."""

CLOSE_TIMEOUT = 2.0
"""Seconds for the node to open, and be closed, once the device is disconnected."""


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

    Attributes:
        monitor: the thread that has attached the device.

    """

    def __init__(
        self, monitor: NetlinkMonitorThread, path: str, lock: int, config: AttachConfig
    ) -> None:
        """Become the owner of a device that its monitor has attached, and of its lock."""
        super().__init__(monitor.index, path, lock, config)
        self.ended = Future()
        self._server_thread = sysfs.server_thread(monitor.index)
        self.monitor = monitor
        monitor.watch(locks.owner_token(lock))
        if config.survive:
            reconnecting.set_resend_timer(self.index, config, self._queue_before)

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
                self.config.identity,
                # Those of an earlier server may differ.
                client_flags=netlink.ClientFlag(0),
                dead_conn_timeout=self.config.dead_conn_timeout,
            )
            self._apply_queue_settings()

    def set_size(self, blocks: int) -> None:
        """Have the kernel change the size."""
        size = blocks * self.config.block_size
        with self._control():
            netlink.reconfigure(self.index, self.config.identity, size=size)

    def _sync_without_node(self) -> None:
        os.sync()

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
        self.monitor.release()
        self.mark_ended()

    def force_disconnect(self) -> None:
        """Have the kernel disconnect the device, without opening the node."""
        if self._is_ours():
            netlink.disconnect(self.index, timeout=FORCE_TIMEOUT)

    def abandon(self) -> None:
        """Detach; a device that is to survive waits for another server from now on."""
        if self.config.survive:
            self.detach()
        else:
            super().abandon()

    def detach(self) -> None:
        """Close the device but leave it attached, until another server comes or its time is up."""
        self._close_claim()
        self.monitor.release(leave=True)
        self._unlock()
        self.mark_ended()

    def _close_node(self) -> None:
        """No-op: the node is not kept open."""

    def mark_ended(self) -> None:
        """Have :attr:`ended` done. No-op: it is."""
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
        with self.using_node():
            if fd < 0:
                fd = atfork.open_protected(self.path)
            try:
                self.check_is_ours()
                yield fd
            finally:
                atfork.close_protected(fd)

    def _is_ours(self) -> bool:
        """Return whether no other server has attached the index, after a disconnect."""
        return self._server_thread is None or sysfs.server_thread(self.index) == self._server_thread

    def check_is_ours(self) -> None:
        """Raise OSError (ENODEV) if another process has disconnected the device."""
        if not self._is_ours():
            raise OSError(errno.ENODEV, "another process has disconnected the device")


def _close(opening: Future[int]) -> None:
    if opening.exception() is None:
        atfork.close_protected(opening.result())
