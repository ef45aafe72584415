"""A device that is attached by netlink."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from .. import forks
from . import liveness, locks, netlink, queue, sysfs
from .anchor import Anchor
from .link import Link
from .pairs import socket_pair
from .terms import Terms

REPLAY_AFTER = 2000
"""Milliseconds between looks at a request whether it has to be sent again on another connection.
The kernel rounds them up to whole seconds, and logs each request that takes longer."""

DEFAULT_IO_TIMEOUT = "30000"
"""Milliseconds; what it is in a new queue (30 * HZ in blk_mq_init_allocated_queue)."""


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
            time.sleep(sysfs.POLL)  # it may not know yet that one has died

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
        fd = forks.open(self.path)
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
