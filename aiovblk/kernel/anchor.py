"""A thread that attaches a device by netlink, and stays for as long as it is attached.

The kernel needs it no longer, but /sys names it as the one who did: so everybody can see which
process serves a device, and whether it still lives.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

from ..threads import in_thread
from . import netlink
from .terms import Terms
from .watchdog import watchdog


class Anchor:
    """One attachment by netlink, watched over from before it is made.

    Attributes:
        index: N of /dev/nbdN.

    """

    def __init__(self, index: int | None, terms: Terms) -> None:
        """Attach a device: this one, or any that is free.

        Raises:
            OSError: as :func:`aiovblk.kernel.netlink.connect`.

        """
        self._released = threading.Event()
        attached: Future[int] = Future()
        self._thread = in_thread(self._stay, index, terms, attached)
        self.index = attached.result()

    def release(self) -> None:
        """Let the thread end, the device being disconnected. Does nothing the second time."""
        self._released.set()
        self._thread.result()

    def _stay(self, index: int | None, terms: Terms, attached: Future[int]) -> None:
        thread = threading.get_native_id()
        watchdog.expect(thread)
        try:
            try:
                found = netlink.connect(
                    index,
                    terms.sockets,
                    size=terms.block_size * terms.blocks,
                    block_size=terms.block_size,
                    flags=terms.flags,
                    timeout=terms.timeout,
                )
            except BaseException as exc:
                attached.set_exception(exc)
                return
            watchdog.watch(thread, found)
            attached.set_result(found)
            self._released.wait()
        finally:
            watchdog.forget(thread)
