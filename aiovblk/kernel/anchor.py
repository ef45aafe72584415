"""A thread that attaches a device by netlink, and stays for as long as it is attached.

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

from ..threads import in_thread
from . import netlink
from .terms import Terms
from .watchdog import watchdog


class Anchor:
    """One attachment by netlink, watched over from before it is made.

    Args:
        index: N of /dev/nbdN; None for any that is free.
        terms: what the kernel has to know.

    Raises:
        OSError: as :func:`aiovblk.kernel.netlink.connect`.

    Attributes:
        index: N of /dev/nbdN.
        on_death: called in the anchor's thread when all connections have died, and nobody has
            asked for it.

    """

    def __init__(self, index: int | None, terms: Terms) -> None:
        self.on_death: Callable[[], None] = lambda: None
        self._ended = threading.Event()
        self._released, self._release = os.pipe2(os.O_CLOEXEC)
        self._guard = threading.Lock()
        self._thread = 0
        attached: Future[int] = Future()
        in_thread(self._stay, index, terms, attached)
        try:
            self.index = attached.result()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let the thread end, the device being disconnected. Does nothing the second time."""
        with self._guard:
            if self._release >= 0:
                os.close(self._release)
                self._release = -1
        if threading.get_native_id() != self._thread:
            self._ended.wait()

    def _stay(self, index: int | None, terms: Terms, attached: Future[int]) -> None:
        self._thread = threading.get_native_id()
        try:
            watchdog.expect(self._thread)
            with closing(netlink.Deaths()) as deaths:
                found = _connect(index, terms)
                watchdog.watch(self._thread, found)
                attached.set_result(found)
                self._hear(deaths, found, len(terms.sockets))
        except BaseException as exc:
            if attached.done():
                raise
            attached.set_exception(exc)
        finally:
            watchdog.forget(self._thread)
            os.close(self._released)
            self._ended.set()

    def _hear(self, deaths: netlink.Deaths, index: int, alive: int) -> None:
        poll = select.poll()
        poll.register(deaths, select.POLLIN)
        poll.register(self._released, select.POLLIN)
        while all(fd != self._released for fd, _ in poll.poll()):
            with suppress(OSError):  # ENOBUFS: too many at once; those of others, most likely
                alive -= deaths.read().count(index)
                if alive == 0:
                    self.on_death()


def _connect(index: int | None, terms: Terms) -> int:
    return netlink.connect(
        index,
        terms.sockets,
        size=terms.block_size * terms.blocks,
        block_size=terms.block_size,
        flags=terms.flags,
        timeout=terms.timeout,
    )
