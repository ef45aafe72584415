"""Get the kernel to take a new socket in place of a dead one (netlink only)."""

from __future__ import annotations

import asyncio
import errno
import socket
from concurrent import futures
from functools import partial

from ... import kernel
from ...errors import DeviceBusyError
from ...threads import run_in_daemon_thread
from ..backend import Backend
from ..connections import ConnectionGroup, KernelConnection
from ..deadlines import KERNEL_TIMEOUT, run_in_thread, wait_thread
from .receive_threads import wait_started, wait_stopped
from .reconnect import RECONNECT_TIMEOUT

DEAD_CONNECTION_TIMEOUT = 2.0
"""Seconds for the kernel to report that a connection has died, which takes it milliseconds. Where
it does not, the socket was taken away from outside (NBD_CLEAR_SOCK), and the program that does so
waits for this process to release the device (STEP_TIMEOUT)."""


def enable_reconnecting(
    backend: Backend, connections: ConnectionGroup, attachment: kernel.AttachedDisk
) -> None:
    """Have lost connections of a device reconnected, if it is attached by netlink."""
    if isinstance(attachment, kernel.NetlinkAttachment):
        opener = ReplacementOpener(backend, connections, attachment)
        connections.reconnector.open_replacement = opener.open


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
        reconnector, attachment = self._connections.reconnector, self._attachment
        # Else the old receiver, which may not even have begun, would take from the new connection.
        await wait_stopped(attachment.index, lambda: reconnector.live_count, RECONNECT_TIMEOUT)
        has_died = partial(kernel.reconnecting.has_died, attachment, DEAD_CONNECTION_TIMEOUT)
        if not await run_in_thread(KERNEL_TIMEOUT, has_died):
            raise ConnectionError("another program took its socket away")
        await self._backend.open_replacement(old, new)
        async with self._one_at_a_time:
            return await replace_dead_connection(attachment, reconnector.live_count)


async def replace_dead_connection(
    attachment: kernel.NetlinkAttachment, others: int
) -> socket.socket:
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
    offering = run_in_daemon_thread(
        kernel.reconnecting.replace_dead_connection, attachment, KERNEL_TIMEOUT
    )
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
    attachment: kernel.NetlinkAttachment,
) -> list[tuple[socket.socket, bytes]]:
    """Have the kernel take a connection in place of each that the last server had.

    Returns:
        The server's end of each, and what was received on it: nothing.

    """
    sockets: list[tuple[socket.socket, bytes]] = []
    try:
        sockets.append((await replace_dead_connection(attachment, 0), b""))
        offer = partial(kernel.reconnecting.replace_dead_connection, attachment, 0)
        while (sock := await run_in_thread(KERNEL_TIMEOUT, offer)) is not None:
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
