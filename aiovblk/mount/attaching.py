"""How a mount comes by its device: attached anew, or taken over from another server."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
from collections.abc import Coroutine
from concurrent import futures
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from .. import kernel
from ..errors import AttachError, DeviceBusyError
from ..threads import in_thread
from .door import Geometry, Given, Wanted, ask
from .events import Events
from .lines import REMAKE_TIMEOUT, Line, Lines, close_all
from .receivers import begun, ended
from .served import Served
from .unmounting import KERNEL_TIMEOUT
from .waiting import call, within

logger = logging.getLogger("aiovblk")

T = TypeVar("T")

Attach = Literal["auto", "ioctl", "netlink"]
"""How a device is attached."""

ATTACH_TIMEOUT = 30.0
"""Seconds for attaching, and again for the first reads to be answered."""

REQUEST_TIMEOUT = 120.0
"""Seconds after which the kernel takes one of several connections for dead, unless told otherwise.

With several it must have a limit: only then are the requests of one that is lost sent again."""

DEATH_TIMEOUT = 2.0
"""Seconds for the kernel to tell that a connection has died, which takes it milliseconds. Where it
does not, somebody has taken it away; and who that is waits for us to let go (STEP_TIMEOUT)."""

SURVIVING_REQUEST_TIMEOUT = 15.0
"""The same for a device that is to survive its server: what was in flight waits for so long, even
when another server has come long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a device is to be mounted; :func:`aiovblk.mounted` explains each."""

    attach: Attach
    timeout: float | None
    unmount_timeout: float
    queue: kernel.RequestQueue
    identity: str | None
    survive: float
    replace: bool
    partitions: bool


class Attaching:
    """One attachment, from nothing until requests are served.

    Args:
        served: what is to be served.
        lines: its connections, which are made here.
        events: a mount that is to end meanwhile is not attached any more.
        options: how.

    Attributes:
        is_taken_over: whether the device was attached before.

    """

    def __init__(self, served: Served, lines: Lines, events: Events, options: Options) -> None:
        self.is_taken_over = False
        self._is_open = False
        self._served = served
        self._lines = lines
        self._events = events
        self._options = options
        self._offering = asyncio.Lock()

    async def run(self, path: str | None) -> kernel.Link:
        """Attach a device, or take it over; requests are served when this returns.

        Raises:
            AttachError: as for :func:`aiovblk.mounted`.
            Exception: whatever a factory raises, where there is one.

        """
        link = None
        if not self._served.is_made_late:
            await self._open()
        if self._options.identity is not None:
            link = await self._take_over(path, self._options.identity)
        self.is_taken_over = link is not None
        if link is not None:
            return link
        await self._open()
        return await self._attach(path)

    async def _open(self) -> None:
        if not self._is_open:
            self._is_open = True
            await self._unless_stopped(self._served.open(self._lines))

    async def renew(self, link: kernel.NetlinkLink, old: Line, new: Line) -> socket.socket:
        """Have a line ready in place of another, and a connection for it.

        Raises:
            ConnectionError: somebody took the other's away.

        """
        lines = self._lines
        # Else its receiver, which may not even have begun, would take from the new one.
        await ended(link.index, lambda: lines.in_use, REMAKE_TIMEOUT)
        if not await call(KERNEL_TIMEOUT, link.has_died, DEATH_TIMEOUT):
            raise ConnectionError("somebody took its socket away")
        await self._served.renew(old, new)
        async with self._offering:
            return await _offer(link, lines.in_use)

    async def _unless_stopped(self, step: Coroutine[Any, Any, T]) -> T:
        """Take a step that may take for ever, since a worker or a factory takes it."""
        taking = asyncio.create_task(step)
        await asyncio.sleep(0)  # what waits for nobody is done then, and stands
        steps: list[asyncio.Future[Any]] = [taking, self._events.stopping]
        await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
        taking.cancel()
        await asyncio.wait([taking])
        if taking.cancelled():
            raise AttachError(errno.ECANCELED, "unmounted before it was mounted")
        return taking.result()

    def _terms(self, sockets: list[int]) -> kernel.Terms:
        options = self._options
        timeout = options.timeout or 0
        if len(sockets) > 1 and not timeout:
            timeout = SURVIVING_REQUEST_TIMEOUT if options.survive else REQUEST_TIMEOUT
        return kernel.Terms(
            sockets,
            block_size=self._served.device.block_size,
            blocks=self._served.device.blocks,
            flags=self._served.flags,
            timeout=math.ceil(timeout),
            queue=options.queue,
            dead_conn_timeout=math.ceil(max(options.survive, REMAKE_TIMEOUT)),
            survive=options.survive,
            identity=options.identity,
        )

    # Anew

    async def _attach(self, path: str | None) -> kernel.Link:
        connecting = self._lines.connect()
        # In this process that takes no time. A device that is connected is attached, and unmounted
        # in order if it is to end already.
        is_here = self._lines.are_movable
        kernels = await (connecting if is_here else self._unless_stopped(connecting))
        # Serve before they are handed over, since requests come at once.
        self._lines.start()
        try:
            return await self._obtain_link(path, [sock.fileno() for sock in kernels])
        except BaseException:
            self._lines.abort()
            raise
        finally:
            close_all(kernels)

    async def _obtain_link(self, path: str | None, sockets: list[int]) -> kernel.Link:
        how = self._options.attach
        by_netlink = None if how == "auto" else how == "netlink"
        if self._options.identity is not None:
            by_netlink = True
        attaching = in_thread(kernel.attach, path, self._terms(sockets), by_netlink=by_netlink)
        try:
            return await within(ATTACH_TIMEOUT, attaching)
        except TimeoutError as exc:
            # Should it be opened after all, nobody serves it.
            attaching.add_done_callback(_close_link)
            reason = (
                "opening the device hangs: some program waits there for a server that is gone; "
                "`aiovblk unmount --force` frees it"
            )
            raise AttachError(errno.ETIMEDOUT, reason, path) from exc

    # From another server

    async def _take_over(self, path: str | None, identity: str) -> kernel.Link | None:
        """Serve a device that is attached already; None if there is none of this identity."""
        index = await call(ATTACH_TIMEOUT, kernel.find, path, identity)
        if index is None:
            return None
        given = await self._ask_for(index, identity) if self._options.replace else None
        link: kernel.NetlinkLink | None
        if given is not None:
            link = await self._use(given, index)
        else:
            await self._open()
            link = await call(ATTACH_TIMEOUT, kernel.adopt, path, self._terms([]))
            if link is None:  # it has just been unmounted
                return None
            await self._serve(link, await _offer_all(link))
        logger.info("took over %s (%s)", link.path, identity)
        return link

    async def _serve(
        self, link: kernel.NetlinkLink, connections: list[tuple[socket.socket, bytes]]
    ) -> None:
        prepare = partial(self._served.renew, None)
        try:
            await self._unless_stopped(self._lines.take_over(connections, prepare))
        except BaseException:
            await call(KERNEL_TIMEOUT, link.forsake)
            raise
        self._lines.start()

    async def _ask_for(self, index: int, identity: str) -> Given | None:
        served = self._served
        wanted = Wanted(identity, None if served.is_made_late else Geometry.of(served.device))
        # For its handlers to end, its flush() and its unmount(), each of which it limits alike.
        seconds = 4 * self._options.unmount_timeout
        return await call(2 * seconds, ask, kernel.locks.socket_path(index), wanted, seconds)

    async def _use(self, given: Given, index: int) -> kernel.NetlinkLink:
        """Go on where another server has left off; it is left to a third if that cannot be."""
        kernel.locks.sign(given.lock)
        path, geometry = f"/dev/nbd{index}", given.geometry
        blocks = geometry.size // geometry.block_size
        terms = replace(self._terms([]), block_size=geometry.block_size, blocks=blocks)
        link = await call(ATTACH_TIMEOUT, kernel.taken_over, index, path, given.lock, terms)
        try:
            await self._open()
            made = Geometry.of(self._served.device)
            if made != geometry:
                reason = f"{geometry} was handed over, and {made} was made; serve the same"
                raise AttachError(errno.EINVAL, reason, path)
        except BaseException:
            given.close()
            await call(KERNEL_TIMEOUT, link.forsake)
            raise
        await self._serve(link, list(given.connections))
        return link


async def _offer_all(link: kernel.Link) -> list[tuple[socket.socket, bytes]]:
    """A connection in place of each that the last server had."""
    connections: list[tuple[socket.socket, bytes]] = []
    try:
        connections.append((await _offer(link, 0), b""))
        while (sock := await call(KERNEL_TIMEOUT, link.offer, 0)) is not None:
            connections.append((sock, b""))
            await begun(link.index, len(connections))
    except BaseException:
        close_all([sock for sock, _ in connections])
        await call(KERNEL_TIMEOUT, link.forsake)
        raise
    return connections


async def _offer(link: kernel.Link, others: int) -> socket.socket:
    """A connection in place of one that has died, beside others."""
    offering = in_thread(link.offer, KERNEL_TIMEOUT)
    try:
        sock = await within(2 * KERNEL_TIMEOUT, offering)
    except BaseException:
        offering.add_done_callback(_close_socket)
        raise
    if sock is None:
        raise DeviceBusyError(errno.EBUSY, "it still has a server", link.path)
    try:
        await begun(link.index, others + 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _close_socket(offering: futures.Future[socket.socket | None]) -> None:
    if offering.exception() is None and (sock := offering.result()) is not None:
        sock.close()


def _close_link(attaching: futures.Future[kernel.Link]) -> None:
    if attaching.exception() is None:
        link = attaching.result()
        link.finish()
        link.close()
