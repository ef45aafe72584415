"""Clean up after an event loop that was dropped with the mount that ran on it.

Its sockets go with it, so the kernel notices. All that is left then is the attachment's own thread:
by ioctl it returns from NBD_DO_IT, by netlink it receives that connections have died.
"""

from __future__ import annotations

import asyncio
import weakref
from concurrent import futures
from functools import partial

from ... import kernel
from ..state import MountState


def watch(attachment: kernel.AttachedDisk, state: MountState) -> None:
    """Have the state of a mount learn of its attachment's end; abandon that if no loop is left.

    Args:
        attachment: of the mount's device.
        state: of the mount. It and the running loop are held weakly.

    """
    found = _Server(state)

    def on_end(_: futures.Future[int]) -> None:
        if not found.notify():
            attachment.abandon()

    attachment.ended.add_done_callback(on_end)
    if isinstance(attachment, kernel.NetlinkAttachment):
        attachment.monitor.on_link_dead = partial(_end_if_dropped, attachment, found)


def _end_if_dropped(attachment: kernel.NetlinkAttachment, server: _Server) -> None:
    """End an attachment that has lost a connection, if nothing is left to reconnect it."""
    if server.is_dropped:
        attachment.mark_ended()


class _Server:
    """Weak references to a mount's state and to its event loop."""

    def __init__(self, state: MountState) -> None:
        self._state = weakref.ref(state)
        self._loop = weakref.ref(asyncio.get_running_loop())

    @property
    def is_dropped(self) -> bool:
        loop = self._loop()
        return self._state() is None or loop is None or loop.is_closed()

    def notify(self) -> bool:
        """Mark the attachment as ended, from another thread; False if no loop is left."""
        state, loop = self._state(), self._loop()
        if state is None or loop is None:
            return False
        try:
            loop.call_soon_threadsafe(state.mark_attachment_ended)
        except RuntimeError:  # the loop is closed
            return False
        return True
