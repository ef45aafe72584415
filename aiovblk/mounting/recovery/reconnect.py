"""Reconnect a lost connection between the kernel and a live device (netlink only).

The kernel lets requests wait for a while when a connection has died (``dead_conn_timeout``), and
takes another one in its place; what was in flight is sent again on that. A connection is replaced
only when its handlers have ended, and at most once in a row if a handler was too slow: see
:meth:`Reconnector._failed_again_at_once`.

:class:`Reconnector` decides which connections are reconnected, and does so in the group;
``replacement.py`` gets the kernel to take a new socket.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ...aio.tasks import GracefulTask, wait_for_task
from ...dispatch import Stats
from ...events import ConnectionLost, ConnectionRestored
from ..state import MountState

if TYPE_CHECKING:
    from ..connections import ConnectionGroup, ConnectionSlot, KernelConnection

logger = logging.getLogger("aiovblk")

RECONNECT_TIMEOUT = 30.0
"""Seconds for a lost connection to be reconnected, with a new worker process if need be. The kernel
lets requests wait for it."""

OpenReplacement = Callable[["KernelConnection", "KernelConnection"], Awaitable[socket.socket]]
"""Prepares a connection (the second) that is to replace another, which has ended (the first), and
returns the server's end of a socket pair for it."""


@dataclass(slots=True)
class Recovery:
    """How one connection was lost, and what becomes of it.

    Attributes:
        reconnecting: the task that reconnects it, while that runs.
        failed_since: when the kernel last gave up a connection here because a handler took too
            long, in the loop's time.
        retired: why the connection is to be replaced although it works; empty if it is not.
        lost: why the kernel has no connection here now; empty if it has one.

    """

    reconnecting: GracefulTask[None] | None = None
    failed_since: float = -math.inf
    retired: str = ""
    lost: str = ""


class Reconnector:
    """Reconnects lost connections of one mount.

    Args:
        connections: the group.
        state: of the mount; cancelling a reconnect requests the unmount.
        request_timeout: seconds after which the kernel gives up a connection whose handler does not
            end; 0 if it was given no limit.

    Attributes:
        open_replacement: opens a replacement; None where the kernel takes none: attached by ioctl,
            not attached yet, or about to be unmounted.
        replaced: the counters of the connections that were replaced.

    """

    def __init__(
        self, connections: ConnectionGroup, state: MountState, request_timeout: float = 0.0
    ) -> None:
        self.open_replacement: OpenReplacement | None = None
        self.replaced: list[Stats] = []
        self._connections = connections
        self._request_timeout = request_timeout
        self._state = state

    def retire(self, connections: Sequence[KernelConnection], reason: str) -> None:
        """Reconnect connections that work; what has arrived on them is answered before.

        They are lost where :attr:`open_replacement` is None.
        """
        for slot in self._connections.slots:
            if slot.connection in connections:
                slot.recovery.retired = reason
                slot.connection.stop_receiving()

    def stop(self) -> None:
        """Reconnect no connection any more, and cancel what is under way.

        The kernel does not let go of one that it takes when it has begun to disconnect.
        """
        self.open_replacement = None
        for slot in self._connections.slots:
            if slot.recovery.reconnecting is not None:
                slot.recovery.reconnecting.force_cancel()

    @property
    def live_count(self) -> int:
        """How many connections the kernel has: those that are not lost, or are reconnected."""
        return sum(not (slot.recovery.lost or slot.ended) for slot in self._connections.slots)

    def handle_loss(self, slot: ConnectionSlot, error: BaseException | None) -> None:
        """Start to reconnect, or give the connection up if that cannot be."""
        recovery, group = slot.recovery, self._connections
        if error is not None:
            recovery.retired = ""  # it broke before
        recovery.lost = recovery.retired or str(error or "it was closed")
        group.publish(ConnectionLost(slot.number + 1, len(group.slots), recovery.lost))
        if not recovery.retired:
            if self.open_replacement is None or group.paused or self._failed_again_at_once(slot):
                self._give_up(slot, error, recovery.lost)
                return
            _abort_handlers(slot)
        reconnecting = wait_for_task(
            RECONNECT_TIMEOUT, self._reconnect(slot, self.open_replacement)
        )
        recovery.reconnecting = GracefulTask(reconnecting, self._state.request_stop)
        recovery.reconnecting.add_done_callback(
            partial(self._on_reconnected, slot, error, recovery.lost)
        )

    def _give_up(self, slot: ConnectionSlot, error: BaseException | None, reason: str) -> None:
        """Let a connection be lost for good; the others take over what was in flight."""
        slots = self._connections.slots
        if any(not other.ended for other in slots if other is not slot):
            _abort_handlers(slot)
            logger.error(
                "connection %d of %d is lost (%s); what was in flight on it is sent again on the"
                " others",
                slot.number + 1,
                len(slots),
                reason,
            )
        self._connections.mark_ended(slot, error)

    def _failed_again_at_once(self, slot: ConnectionSlot) -> bool:
        """Return whether the kernel gave up this connection for a timeout, and the last one too.

        What took too long may have been an outage, so it is retried once. After that it is the end,
        as without another connection: else the program that waits for the request would wait for
        ever.
        """
        start, timeout = slot.connection.oldest_start, self._request_timeout
        now = asyncio.get_running_loop().time()
        # The kernel counts from before the handler began, and a worker reports now and then.
        if not timeout or start is None or now - start < timeout / 2:
            return False
        before, slot.recovery.failed_since = slot.recovery.failed_since, now
        return now - before < 4 * timeout

    async def _reconnect(
        self, slot: ConnectionSlot, open_replacement: OpenReplacement | None
    ) -> None:
        await slot.connection.drained()
        if slot.recovery.retired:
            await slot.connection.close()
        if open_replacement is None:
            raise ConnectionError("the kernel takes no other")
        connection = self._connections.new_connection(slot)
        sock = await open_replacement(slot.connection, connection)
        slot.recovery.lost = slot.recovery.retired = ""
        try:
            await connection.connect(sock)
        except BaseException:
            sock.close()
            raise
        self.replaced.append(slot.connection.stats)
        slot.connection = connection

    def _on_reconnected(
        self,
        slot: ConnectionSlot,
        error: BaseException | None,
        reason: str,
        reconnecting: asyncio.Task[None],
    ) -> None:
        slot.recovery.reconnecting = None
        if reconnecting.cancelled():
            self._connections.mark_ended(slot, error)
        elif failure := reconnecting.exception():
            failed = f"reconnecting it failed: {failure or 'it took too long'}"
            self._give_up(slot, error, f"{reason}; {failed}")
        else:
            count = len(self._connections.slots)
            logger.warning(
                "connection %d of %d was lost (%s) and is reconnected; what was in flight on it is"
                " sent again",
                slot.number + 1,
                count,
                reason,
            )
            self._connections.publish(ConnectionRestored(slot.number + 1, count))
            self._connections.serve(slot)


def _abort_handlers(slot: ConnectionSlot) -> None:
    """Cancel the handlers of a lost connection, whose requests the kernel sends again.

    What they store late could undo what is stored then.
    """
    slot.connection.abort()
