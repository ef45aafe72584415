"""A thread that attaches a device by netlink, or takes one over, and stays for as long as it lasts.

The kernel needs it no longer, but /sys names it as the one who did: so everybody can see which
process serves a device, and whether it still lives. Meanwhile it hears when connections die.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress

from ..threads import run_in_daemon_thread
from . import netlink
from .watchdog import watchdog


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
