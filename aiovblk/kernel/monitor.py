"""The thread that attaches a device by netlink, and monitors it until it is released.

The file ``pid`` in /sys names the thread that sent CONNECT. So each attachment has a thread of its
own: it registers the device with the watchdog (:mod:`.watchdog`), attaches it, and then receives
the kernel's events of dead connections (LINK_DEAD).
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress

from ..threads import run_in_daemon_thread
from . import link_dead
from .watchdog import watchdog


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
        dead_connections: how many connections have died without a disconnect.
        on_link_dead: called in this thread when one has.

    """

    def __init__(self, attach: Callable[[], int], survive: float) -> None:
        self.on_link_dead: Callable[[], None] = lambda: None
        self.dead_connections = threading.Semaphore(0)
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
            with closing(link_dead.LinkDeadListener()) as listener:
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

    def _read_link_dead(self, listener: link_dead.LinkDeadListener, index: int) -> None:
        """Handle each event of this device, until released."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._released, select.POLLIN)
        while all(fd != self._released for fd, _ in poll.poll()):
            with suppress(OSError):  # ENOBUFS: too many at once; those of others, most likely
                if index in listener.read():
                    self.dead_connections.release()
                    self.on_link_dead()
