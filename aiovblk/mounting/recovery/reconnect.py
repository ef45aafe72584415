"""Reconnect a lost connection between the kernel and a live device (netlink only).

The kernel lets requests wait for a while when a connection has died (``dead_conn_timeout``), and
takes another one in its place; what was in flight is sent again on that. A connection is replaced
only when its handlers have ended, and at most once in a row if a handler was too slow: see
:meth:`Reconnector._failed_again_at_once`.

Two parts: :class:`Reconnector` decides which connections are reconnected, and does so in the
group; :class:`ReplacementOpener` gets the kernel to take a new socket.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent import futures
from functools import partial

from ... import kernel
from ...aio.tasks import GracefulTask
from ...errors import DeviceBusyError
from ...events import ConnectionRestored
from ...threads import run_in_daemon_thread
from ..backend import Backend
from ..connections import ConnectionGroup, ConnectionSlot, KernelConnection, abort_handlers
from ..deadlines import KERNEL_TIMEOUT, run_in_thread, wait_for_task, wait_thread
from ..state import MountState
from .receive_threads import wait_started, wait_stopped

logger = logging.getLogger("aiovblk")

RECONNECT_TIMEOUT = 30.0
"""Seconds for a lost connection to be reconnected, with a new worker process if need be. The kernel
lets requests wait for it."""

DEAD_CONNECTION_TIMEOUT = 2.0
"""Seconds for the kernel to report that a connection has died, which takes it milliseconds. Where
it does not, the socket was taken away from outside (NBD_CLEAR_SOCK), and the program that does so
waits for this process to release the device (STEP_TIMEOUT)."""

OpenReplacement = Callable[[KernelConnection, KernelConnection], Awaitable[socket.socket]]
"""Prepares a connection (the second) that is to replace another, which has ended (the first), and
returns the server's end of a socket pair for it."""


class Reconnector:
    """Reconnects lost connections of one mount; the loss handler of its connection group.

    Args:
        connections: the group; this becomes its ``loss_handler``.
        state: of the mount; cancelling a reconnect requests the unmount.
        request_timeout: seconds after which the kernel gives up a connection whose handler does not
            end; 0 if it was given no limit.

    Attributes:
        open_replacement: opens a replacement; None where the kernel takes none: attached by ioctl,
            not attached yet, or about to be unmounted.

    """

    def __init__(
        self, connections: ConnectionGroup, state: MountState, request_timeout: float = 0.0
    ) -> None:
        self.open_replacement: OpenReplacement | None = None
        self._connections = connections
        self._request_timeout = request_timeout
        self._state = state
        connections.loss_handler = self

    def retire(self, connections: Sequence[KernelConnection], reason: str) -> None:
        """Reconnect connections that work; what has arrived on them is answered before.

        They are lost where :attr:`open_replacement` is None.
        """
        for slot in self._connections.slots:
            if slot.connection in connections:
                slot.retired = reason
                slot.connection.stop_receiving()

    def stop(self) -> None:
        """Reconnect no connection any more, and cancel what is under way."""
        self.open_replacement = None
        for slot in self._connections.slots:
            if slot.reconnecting is not None:
                slot.reconnecting.force_cancel()

    def handle_loss(self, slot: ConnectionSlot, error: BaseException | None) -> None:
        """Start to reconnect, or give the connection up if that cannot be."""
        if not slot.retired:
            if (
                self.open_replacement is None
                or self._connections.paused
                or self._failed_again_at_once(slot)
            ):
                self._connections.mark_lost(slot, error, slot.lost)
                return
            abort_handlers(slot)
        reconnecting = wait_for_task(
            RECONNECT_TIMEOUT, self._reconnect(slot, self.open_replacement)
        )
        slot.reconnecting = GracefulTask(reconnecting, self._state.request_stop)
        slot.reconnecting.add_done_callback(partial(self._on_reconnected, slot, error, slot.lost))

    def _failed_again_at_once(self, slot: ConnectionSlot) -> bool:
        """Tell whether the kernel gave up this connection for a timeout, and the last one too.

        What took too long may have been an outage, so it is retried once. After that it is the end,
        as without another connection: else the program that waits for the request would wait for
        ever.
        """
        start, timeout = slot.connection.oldest_start, self._request_timeout
        now = asyncio.get_running_loop().time()
        # The kernel counts from before the handler began, and a worker reports now and then.
        if not timeout or start is None or now - start < timeout / 2:
            return False
        before, slot.failed_since = slot.failed_since, now
        return now - before < 4 * timeout

    async def _reconnect(
        self, slot: ConnectionSlot, open_replacement: OpenReplacement | None
    ) -> None:
        await slot.connection.drained()
        if slot.retired:
            await slot.connection.close()
        if open_replacement is None:
            raise ConnectionError("the kernel takes no other")
        connection = self._connections.new_connection(slot)
        sock = await open_replacement(slot.connection, connection)
        slot.lost = slot.retired = ""
        try:
            await connection.connect(sock)
        except BaseException:
            sock.close()
            raise
        self._connections.replace(slot, connection)

    def _on_reconnected(
        self,
        slot: ConnectionSlot,
        error: BaseException | None,
        reason: str,
        reconnecting: asyncio.Task[None],
    ) -> None:
        slot.reconnecting = None
        if reconnecting.cancelled():
            self._connections.mark_ended(slot, error)
        elif failure := reconnecting.exception():
            failed = f"reconnecting it failed: {failure or 'it took too long'}"
            self._connections.mark_lost(slot, error, f"{reason}; {failed}")
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


class ReplacementOpener:
    """Opens a socket that the kernel takes in place of a dead one.

    Args:
        backend: prepares the connection that is to serve it: a worker, say.
        connections: all there are.
        attachment: of the device.

    """

    def __init__(
        self, backend: Backend, connections: ConnectionGroup, attachment: kernel.NetlinkAttachment
    ) -> None:
        self._backend = backend
        self._connections = connections
        self._attachment = attachment
        # One at a time: see receive_threads.
        self._one_at_a_time = asyncio.Lock()

    async def open(self, old: KernelConnection, new: KernelConnection) -> socket.socket:
        """Prepare ``new`` in place of ``old``, and return a socket for it.

        Raises:
            ConnectionError: the socket of ``old`` was taken away from outside.
            TimeoutError: the kernel did not answer, or did not begin to receive.

        """
        connections, attachment = self._connections, self._attachment
        # Else the old receiver, which may not even have begun, would take from the new connection.
        await wait_stopped(attachment.index, lambda: connections.live_count, RECONNECT_TIMEOUT)
        if not await run_in_thread(KERNEL_TIMEOUT, attachment.has_died, DEAD_CONNECTION_TIMEOUT):
            raise ConnectionError("another program took its socket away")
        await self._backend.open_replacement(old, new)
        async with self._one_at_a_time:
            return await replace_dead_connection(attachment, connections.live_count)


async def replace_dead_connection(attachment: kernel.Attachment, others: int) -> socket.socket:
    """Have the kernel take a new connection in place of a dead one, and receive by it.

    Args:
        attachment: of the device.
        others: how many connections the kernel has beside it.

    Returns:
        The server's end.

    Raises:
        DeviceBusyError: no connection is dead.
        TimeoutError: the kernel has not answered.

    """
    offering = run_in_daemon_thread(attachment.replace_dead_connection, KERNEL_TIMEOUT)
    try:
        sock = await wait_thread(2 * KERNEL_TIMEOUT, offering)
    except BaseException:
        offering.add_done_callback(_close_socket)
        raise
    if sock is None:
        raise DeviceBusyError(errno.EBUSY, "it still has a server", attachment.path)
    try:
        await wait_started(attachment.index, others + 1)
    except BaseException:
        sock.close()
        raise
    return sock


async def replace_all_dead_connections(
    attachment: kernel.Attachment,
) -> list[tuple[socket.socket, bytes]]:
    """Have the kernel take a connection in place of each that the last server had.

    Returns:
        The server's end of each, and what was received on it: nothing.

    """
    sockets: list[tuple[socket.socket, bytes]] = []
    try:
        sockets.append((await replace_dead_connection(attachment, 0), b""))
        while (
            sock := await run_in_thread(KERNEL_TIMEOUT, attachment.replace_dead_connection, 0)
        ) is not None:
            sockets.append((sock, b""))
            await wait_started(attachment.index, len(sockets))
    except BaseException:
        for sock, _ in sockets:
            sock.close()
        await run_in_thread(KERNEL_TIMEOUT, attachment.abandon)
        raise
    return sockets


def _close_socket(offering: futures.Future[socket.socket | None]) -> None:
    if offering.exception() is None and (sock := offering.result()) is not None:
        sock.close()
