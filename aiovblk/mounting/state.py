"""The states of a mount and what leads from one to the next, in one place.

A mount is in one :class:`Phase` at a time; :data:`TRANSITIONS` holds every way on:

    ATTACHING     -> SERVING         the device is live
                  -> NOT_MOUNTED     attaching failed, or was cancelled
    SERVING       -> HANDING_OVER    detach(), or another process asks for the device
                  -> UNMOUNTING      unmount(), a disconnect from outside, a lost connection
    HANDING_OVER  -> SERVING         the handover was refused: handlers hang, or flush() failed
                  -> HANDED_OVER     the device stays attached, for another server
    UNMOUNTING    -> UNMOUNTED

The task that runs the mount (``lifecycle.py``) enters the phases; nothing else does. What happens
meanwhile, in callbacks and other tasks, is recorded as conditions: futures of :class:`MountState`
that are done once the condition holds. Each stays so, except ``handover_requested`` and
``handover_refused``: both are replaced when a handover was refused.

    condition            set when                                   what it leads to
    live                 the device is live, or attaching failed    ``mounted()`` is entered
    stop_requested       unmount(), cancellation, DISC, all         UNMOUNTING
                         connections lost, the attachment ended
    force_requested      unmount(force=True) during an unmount      the waits of the unmount end
    handover_requested   detach(), or a successor asks              HANDING_OVER
    handover_refused     a handover failed                          SERVING
    disconnected         DISC on one connection, and each other     a stop is requested
                         one has got DISC or has ended
    stream_ended         every connection has ended                 a stop is requested
    attachment_ended     the kernel has let go of the sockets       a stop is requested

Where a stop is requested before a handover begins, the stop wins. (``disconnected`` without
``stream_ended`` is an orderly disconnect, and no lost connection.)
"""

from __future__ import annotations

import asyncio
from enum import Enum

from ..aio.tasks import set_once
from ..events import EventBroadcaster


class Phase(Enum):
    """Where a mount is between its first step and its last."""

    ATTACHING = "attaching"
    SERVING = "serving"
    HANDING_OVER = "handing over"
    UNMOUNTING = "unmounting"
    NOT_MOUNTED = "not mounted"
    HANDED_OVER = "handed over"
    UNMOUNTED = "unmounted"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.ATTACHING: frozenset({Phase.SERVING, Phase.NOT_MOUNTED}),
    Phase.SERVING: frozenset({Phase.HANDING_OVER, Phase.UNMOUNTING}),
    Phase.HANDING_OVER: frozenset({Phase.SERVING, Phase.HANDED_OVER}),
    Phase.UNMOUNTING: frozenset({Phase.UNMOUNTED}),
    Phase.NOT_MOUNTED: frozenset(),
    Phase.HANDED_OVER: frozenset(),
    Phase.UNMOUNTED: frozenset(),
}
"""The phases that may follow each; none after the last."""


class MountState:
    """The phase of one mount, and the conditions that lead to the next.

    The conditions are futures, so that no cancellation reaches a task that waits for one. Only the
    methods here set them.

    Concurrency: to be used in the thread of the mount's event loop only.

    Attributes:
        phase: where the mount is.
        broadcaster: publishes the mount's events to those who have subscribed.

    """

    def __init__(self) -> None:
        """Begin with no condition set, in :attr:`Phase.ATTACHING`; takes a running loop."""
        self._new = asyncio.get_running_loop().create_future
        self.phase = Phase.ATTACHING
        self.live: asyncio.Future[None] = self._new()
        """The device is live; holds the exception if it could not be mounted."""
        self.stop_requested: asyncio.Future[None] = self._new()
        """The device is to be unmounted, or is lost."""
        self.force_requested: asyncio.Future[None] = self._new()
        """The unmount is to end its waits at once."""
        self.disconnected: asyncio.Future[None] = self._new()
        """The kernel has sent DISC (on all connections that were left)."""
        self.stream_ended: asyncio.Future[None] = self._new()
        """All connections have ended; no request comes any more."""
        self.attachment_ended: asyncio.Future[None] = self._new()
        """The kernel has let go of the sockets: NBD_DO_IT has returned; or, attached by netlink,
        the device was disconnected."""
        self.handover_requested: asyncio.Future[None] = self._new()
        """The device is to be left attached, for another server."""
        self.handover_refused: asyncio.Future[str] = self._new()
        """The handover that is requested cannot be; holds the reason."""
        self.broadcaster = EventBroadcaster()

    def enter(self, phase: Phase) -> None:
        """Enter the next phase, which must be one of :data:`TRANSITIONS`."""
        assert phase in TRANSITIONS[self.phase], f"from {self.phase} to {phase}"
        self.phase = phase

    def mark_live(self) -> None:
        """Record that the device is live."""
        set_once(self.live)

    def mark_not_mounted(self, reason: BaseException) -> None:
        """Record why the device could not be mounted."""
        self.live.set_exception(reason)
        self.live.exception()  # retrieved: asyncio must not complain if nothing awaits it any more

    def request_stop(self) -> None:
        """Ask for the unmount. No-op if it was asked for."""
        set_once(self.stop_requested)

    def request_force(self) -> None:
        """Ask for the end of all waits of an unmount. No-op if it was asked for."""
        set_once(self.force_requested)

    def mark_disconnected(self) -> None:
        """Record DISC from the kernel, and ask for the unmount."""
        set_once(self.disconnected)
        self.request_stop()

    def mark_stream_ended(self) -> None:
        """Record the end of all connections, and ask for the unmount."""
        set_once(self.stream_ended)
        self.request_stop()

    def mark_attachment_ended(self) -> None:
        """Record that the kernel has let go of the sockets, and ask for the unmount."""
        set_once(self.attachment_ended)
        self.request_stop()

    def request_handover(self) -> None:
        """Ask for the handover. No-op if it was asked for."""
        set_once(self.handover_requested)

    def refuse_handover(self, reason: str) -> None:
        """End a handover that cannot be; it may be asked for again, and fail again."""
        self.handover_requested = self._new()
        refused, self.handover_refused = self.handover_refused, self._new()
        refused.set_result(reason)
