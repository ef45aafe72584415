"""The connections of a mount in a handover: pause them, give up their sockets, take others over."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

from ... import atfork
from ...dispatch import Dispatcher
from ..connections import ConnectionGroup, ConnectionSlot, KernelConnection, close_all
from ..ublk.dispatcher import UblkDispatcher


async def pause(group: ConnectionGroup) -> None:
    """Take no more requests; returns once all that have been taken are answered."""
    group.paused = True
    for slot, _ in _live(group):
        assert slot.serving is not None  # they have been started
        slot.serving.force_cancel()
    await asyncio.gather(*(dispatcher.pause() for _, dispatcher in _live(group)))


def resume(group: ConnectionGroup) -> None:
    """Take requests again after :func:`pause`."""
    group.paused = False
    for slot, dispatcher in _live(group):
        dispatcher.resume()
        group.serve(slot)


def detach(group: ConnectionGroup) -> list[tuple[socket.socket, bytes]]:
    """Give up the sockets, after :func:`pause`, without the kernel noticing.

    By ublk there is none; the queue is closed, and what it holds goes to the next server.

    Returns:
        The server's end of each, and what was received of requests that were not taken.

    """
    sockets = []
    for _, dispatcher in _live(group):
        if isinstance(dispatcher, UblkDispatcher):
            dispatcher.leave()
        else:
            sockets.append(dispatcher.detach())
    for sock, _ in sockets:
        atfork.protect_socket(sock)
    return sockets


def _live(group: ConnectionGroup) -> list[tuple[ConnectionSlot, Dispatcher | UblkDispatcher]]:
    return [
        (slot, slot.connection)
        for slot in group.slots
        if not slot.ended
        and slot.recovery.reconnecting is None
        and isinstance(slot.connection, Dispatcher | UblkDispatcher)
    ]


async def take_over(
    group: ConnectionGroup,
    sockets: Sequence[tuple[socket.socket, bytes]],
    prepare: Callable[[KernelConnection], Awaitable[None]],
) -> None:
    """Connect sockets whose other ends the kernel has already; as many as there are.

    Args:
        group: receives the connections.
        sockets: the server's end of each, and what was received on it before.
        prepare: called with each connection that is added for that.

    """
    try:
        while len(group.slots) < len(sockets):
            await prepare(group.add(group.slots[0].make))
        del group.slots[len(sockets) :]
        for slot, (sock, received) in zip(group.slots, sockets, strict=True):
            await group.connect_slot(slot, sock, received)
    except BaseException:
        group.abort()
        close_all([sock for sock, _ in sockets])
        raise
