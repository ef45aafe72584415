"""How a mount comes by its device: attached anew, or taken over from another server."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from .. import atfork, kernel
from ..errors import AttachError, DeviceBusyError
from ..threads import run_in_daemon_thread
from .backend import Backend
from .connections import RECONNECT_TIMEOUT, ConnectionGroup, KernelConnection, close_all
from .deadlines import StoppedError, run_in_thread, wait_or_stopped, wait_thread
from .handover.endpoint import HandoverGeometry, HandoverRequest, HandoverResult, request_handover
from .recovery.receive_threads import wait_started, wait_stopped
from .state import MountState
from .unmounting import KERNEL_TIMEOUT

logger = logging.getLogger("aiovblk")

T = TypeVar("T")

Attach = Literal["auto", "ioctl", "netlink"]
"""How a device is attached."""

ATTACH_TIMEOUT = 30.0
"""Seconds for attaching, and again for the first reads to be answered."""

REQUEST_TIMEOUT = 120.0
"""Seconds after which the kernel takes one of several connections for dead, unless told otherwise.

With several it must have a limit: only then are the requests of one that is lost sent again."""

DEAD_CONNECTION_TIMEOUT = 2.0
"""Seconds for the kernel to tell that a connection has died, which takes it milliseconds. Where it
does not, somebody has taken it away; and who that is waits for us to let go (STEP_TIMEOUT)."""

SURVIVING_REQUEST_TIMEOUT = 15.0
"""The same for a device that is to survive its server: what was in flight waits for so long, even
when another server has come long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """How a device is to be mounted; :func:`aiovblk.mounted` explains each."""

    attach: Attach
    timeout: float | None
    unmount_timeout: float
    queue: kernel.RequestQueue
    identity: str | None
    survive: float
    replace: bool
    partitions: bool


class AttachSequence:
    """One attachment, from nothing until requests are served.

    Args:
        served: what is to be served.
        lines: its connections, which are made here.
        events: a mount that is to end meanwhile is not attached any more.
        options: how.

    Attributes:
        is_taken_over: whether the device was attached before.

    """

    def __init__(
        self, served: Backend, lines: ConnectionGroup, events: MountState, options: MountOptions
    ) -> None:
        self.is_taken_over = False
        self._is_open = False
        self._backend = served
        self._connections = lines
        self._state = events
        self._options = options
        self._offering = asyncio.Lock()

    async def run(self, path: str | None) -> kernel.Attachment:
        """Attach a device, or take it over; requests are served when this returns.

        Raises:
            AttachError: as for :func:`aiovblk.mounted`.
            Exception: whatever a factory raises, where there is one.

        """
        link = None
        if not self._backend.opens_after_handover:
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
            await self.unless_stopped(self._backend.open(self._connections))

    async def open_replacement(
        self, link: kernel.NetlinkAttachment, old: KernelConnection, new: KernelConnection
    ) -> socket.socket:
        """Have a line ready in place of another, and a connection for it.

        Raises:
            ConnectionError: somebody took the other's away.

        """
        lines = self._connections
        # Else its receiver, which may not even have begun, would take from the new one.
        await wait_stopped(link.index, lambda: lines.live_count, RECONNECT_TIMEOUT)
        if not await run_in_thread(KERNEL_TIMEOUT, link.has_died, DEAD_CONNECTION_TIMEOUT):
            raise ConnectionError("somebody took its socket away")
        await self._backend.open_replacement(old, new)
        async with self._offering:
            return await _offer_connection(link, lines.live_count)

    async def unless_stopped(self, step: Coroutine[Any, Any, T]) -> T:
        """Take a step that may take for ever, since a worker or a factory takes it.

        Raises:
            StoppedError: the mount is to end, and the step was cancelled.

        """
        taking = asyncio.create_task(step)
        await asyncio.sleep(0)  # what waits for nobody is done then, and stands
        steps: list[asyncio.Future[Any]] = [taking, self._state.stopping]
        await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
        taking.cancel()
        await asyncio.wait([taking], timeout=self._options.unmount_timeout)
        if not taking.done() or taking.cancelled():
            raise StoppedError
        return taking.result()

    async def call(
        self,
        seconds: float,
        function: Callable[[], T],
        *,
        undo: Callable[[T], object] | None = None,
        patience: float | None = None,
    ) -> T:
        """Call what blocks, in a thread, for ``seconds`` at most.

        Args:
            seconds: after which it is left to itself.
            function: what to call.
            undo: called in a thread with its result, should that come too late.
            patience: seconds for which it may still take when the mount is to end; None for
                ``unmount_timeout``.

        Raises:
            TimeoutError: it has not returned.
            StoppedError: the mount is to end.

        """
        if patience is None:
            patience = self._options.unmount_timeout
        step = run_in_daemon_thread(function)
        try:
            return await wait_or_stopped(seconds, step, self._state.stopping, patience)
        except (TimeoutError, StoppedError):
            if undo is not None:
                step.add_done_callback(partial(_undo, undo))
            raise

    def _terms(self, sockets: list[int]) -> kernel.AttachConfig:
        options = self._options
        timeout = options.timeout or 0
        if len(sockets) > 1 and not timeout:
            timeout = SURVIVING_REQUEST_TIMEOUT if options.survive else REQUEST_TIMEOUT
        return kernel.AttachConfig(
            sockets,
            block_size=self._backend.device.block_size,
            blocks=self._backend.device.blocks,
            flags=self._backend.flags,
            timeout=math.ceil(timeout),
            queue=options.queue,
            dead_conn_timeout=math.ceil(max(options.survive, RECONNECT_TIMEOUT)),
            survive=options.survive,
            identity=options.identity,
        )

    # Anew

    async def _attach(self, path: str | None) -> kernel.Attachment:
        connecting = self._connections.connect()
        # In this process that takes no time. A device that is connected is attached, and unmounted
        # in order if it is to end already.
        is_here = self._connections.can_hand_over
        kernels = await (connecting if is_here else self.unless_stopped(connecting))
        # Serve before they are handed over, since requests come at once.
        self._connections.start()
        try:
            return await self._obtain_attachment(path, kernels)
        except BaseException:
            self._connections.abort()
            raise

    async def _obtain_attachment(
        self, path: str | None, kernels: list[socket.socket]
    ) -> kernel.Attachment:
        """Have the kernel take its ends of the connections, which are closed here then."""
        how = self._options.attach
        by_netlink = None if how == "auto" else how == "netlink"
        if self._options.identity is not None:
            by_netlink = True
        terms = self._terms([sock.fileno() for sock in kernels])
        given_up = threading.Event()

        def attach() -> kernel.Attachment:
            try:
                wanted = lambda: not given_up.is_set()  # noqa: E731
                return kernel.attach(path, terms, by_netlink=by_netlink, should_continue=wanted)
            finally:
                # Not before, however long it takes: the numbers would be those of other files.
                close_all(kernels)

        try:
            # Should it be attached too late, nobody serves it.
            return await self.call(ATTACH_TIMEOUT, attach, undo=_detach)
        except StoppedError:
            given_up.set()
            raise
        except TimeoutError as exc:
            given_up.set()
            reason = (
                "opening the device hangs: some program waits there for a server that is gone; "
                "`aiovblk unmount --force` frees it"
            )
            raise AttachError(errno.ETIMEDOUT, reason, path) from exc

    # From another server

    async def _take_over(self, path: str | None, identity: str) -> kernel.Attachment | None:
        """Serve a device that is attached already; None if there is none of this identity."""
        index = await self.call(ATTACH_TIMEOUT, partial(kernel.find_by_identity, path, identity))
        if index is None:
            return None
        given = await self._request_from_server(index, identity) if self._options.replace else None
        link: kernel.NetlinkAttachment | None
        if given is not None:
            link = await self._adopt_connections(given, index)
        else:
            await self._open()
            adopt = partial(kernel.take_over_orphan, path, self._terms([]))
            link = await self.call(ATTACH_TIMEOUT, adopt, undo=_abandon)
            if link is None:  # it has just been unmounted
                return None
            await self._serve(link, await self.unless_stopped(_offer_all(link)))
        logger.info("took over %s (%s)", link.path, identity)
        return link

    async def _serve(
        self, link: kernel.NetlinkAttachment, connections: list[tuple[socket.socket, bytes]]
    ) -> None:
        prepare = partial(self._backend.open_replacement, None)
        try:
            await self.unless_stopped(self._connections.take_over(connections, prepare))
        except BaseException:
            await run_in_thread(KERNEL_TIMEOUT, link.abandon)
            raise
        self._connections.start()

    async def _request_from_server(self, index: int, identity: str) -> HandoverResult | None:
        served = self._backend
        wanted = HandoverRequest(
            identity, None if served.opens_after_handover else HandoverGeometry.of(served.device)
        )
        # For its handlers to end, its flush() and its unmount(), each of which it limits alike.
        seconds = 4 * self._options.unmount_timeout
        path = kernel.locks.socket_path(index)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asking = asyncio.create_task(
            self.call(
                2 * seconds,
                partial(request_handover, path, wanted, seconds, sock),
                undo=_release_unused,
            )
        )
        steps: list[asyncio.Future[Any]] = [asking, self._state.stopping]
        await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            # Its server sees that nobody waits, and serves on.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        try:
            given = await asking
        except AttachError:
            self._check_not_stopped()
            raise
        if given is not None and self._state.stopping.done():
            _release_unused(given)
        self._check_not_stopped()
        return given

    def _check_not_stopped(self) -> None:
        if self._state.stopping.done():
            raise StoppedError

    async def _adopt_connections(
        self, given: HandoverResult, index: int
    ) -> kernel.NetlinkAttachment:
        """Go on where another server has left off; it is left to a third if that cannot be."""
        kernel.locks.write_owner(given.lock)
        path, geometry = f"/dev/nbd{index}", given.geometry
        blocks = geometry.size // geometry.block_size
        terms = replace(self._terms([]), block_size=geometry.block_size, blocks=blocks)
        link = await run_in_thread(
            ATTACH_TIMEOUT, kernel.attachment_for_existing, index, path, given.lock, terms
        )
        try:
            await self._open()
            made = HandoverGeometry.of(self._backend.device)
            if made != geometry:
                reason = f"{geometry} was handed over, and {made} was made; serve the same"
                raise AttachError(errno.EINVAL, reason, path)
        except BaseException:
            given.close()
            await run_in_thread(KERNEL_TIMEOUT, link.abandon)
            raise
        await self._serve(link, list(given.connections))
        return link


async def _offer_all(link: kernel.Attachment) -> list[tuple[socket.socket, bytes]]:
    """A connection in place of each that the last server had."""
    connections: list[tuple[socket.socket, bytes]] = []
    try:
        connections.append((await _offer_connection(link, 0), b""))
        while (
            sock := await run_in_thread(KERNEL_TIMEOUT, link.replace_dead_connection, 0)
        ) is not None:
            connections.append((sock, b""))
            await wait_started(link.index, len(connections))
    except BaseException:
        close_all([sock for sock, _ in connections])
        await run_in_thread(KERNEL_TIMEOUT, link.abandon)
        raise
    return connections


async def _offer_connection(link: kernel.Attachment, others: int) -> socket.socket:
    """A connection in place of one that has died, beside others."""
    offering = run_in_daemon_thread(link.replace_dead_connection, KERNEL_TIMEOUT)
    try:
        sock = await wait_thread(2 * KERNEL_TIMEOUT, offering)
    except BaseException:
        offering.add_done_callback(_close_socket)
        raise
    if sock is None:
        raise DeviceBusyError(errno.EBUSY, "it still has a server", link.path)
    try:
        await wait_started(link.index, others + 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _close_socket(offering: futures.Future[socket.socket | None]) -> None:
    if offering.exception() is None and (sock := offering.result()) is not None:
        sock.close()


def _undo(undo: Callable[[T], object], step: futures.Future[T]) -> None:
    if step.exception() is None:
        run_in_daemon_thread(undo, step.result())  # this may be the loop's


def _detach(link: kernel.Attachment) -> None:
    link.disconnect_kernel()
    link.close()
    link.wait_until_free(0)


def _abandon(link: kernel.Attachment | None) -> None:
    if link is not None:
        link.abandon()


def _release_unused(given: HandoverResult | None) -> None:
    """Let go of a device that was handed over, and that waits for another server then."""
    if given is not None:
        given.close()
        atfork.close_protected(given.lock)
