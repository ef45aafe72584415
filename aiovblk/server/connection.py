"""One client: the handshake, the transmission phase, and a way out that answers what it asked."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..aio.tasks import RECHECK_INTERVAL, set_once
from ..dispatch import (
    ConcurrencyLimiter,
    ConnectionQuota,
    Dispatcher,
    FailureLog,
    MemoryBudget,
    Reporter,
    Stats,
)
from ..errors import STOP_EXCEPTIONS, ProtocolError
from ..events import ClientConnected, EventBroadcaster, RequestEvent
from ..protocol import ExportInfo, NegotiationResult, ServerHandshake, TLSMode
from ..stream import StreamProtocol, run_handshake
from .exports import Export, OpenDevice, open_device, open_shared
from .listeners import address
from .stalls import IdleTimer, Progress, StallMonitor
from .warning_limiter import WarningLimiter

logger = logging.getLogger("aiovblk")

WRITE_BUFFER = 1024 * 1024
"""Bytes of replies that may wait for a client before no more of its requests are taken."""

SOCKET_BUFFER = 2 * 1024 * 1024
"""Bytes of replies that the kernel may hold for a client on a Unix socket, as far as
``net.core.wmem_max`` lets it. The default of 208 KiB is less than one large read: the rest of it
would wait for another turn of the loop. TCP sizes its buffers by itself."""

CLOSE_TIMEOUT = 5.0
"""Seconds for a client to take what is left for it; and for handlers to end that are cancelled."""


@dataclass(slots=True)
class ConnectionSettings:
    """What all connections of a server have in common."""

    exports: Mapping[str, Export]
    shared: Mapping[str, OpenDevice]
    tls: ssl.SSLContext | None
    require_tls: bool
    handshake_timeout: float
    drain_timeout: float
    concurrency: int
    handler_timeout: float | None
    slow_request: float | None
    connection_memory: int
    budget: MemoryBudget
    idle_timeout: float | None = None
    expired: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Done when requests in flight have been waited for long enough."""
    feed: EventBroadcaster = field(default_factory=EventBroadcaster)
    """Who tells what happens to clients and their requests."""
    failures: FailureLog = field(default_factory=FailureLog)
    """Who tells in the log why requests fail."""
    complaints: WarningLimiter = field(default_factory=WarningLimiter)
    """Who tells in the log of clients that go wrong."""


def make_settings(
    *,
    exports: Mapping[str, Export],
    tls: ssl.SSLContext | Callable[[], ssl.SSLContext] | None,
    memory: int,
    **others: Any,
) -> ConnectionSettings:
    """What the connections of this process have in common.

    Args:
        exports: by name.
        tls: the certificates, or what loads them.
        memory: bytes for the requests in flight of all.
        others: as in :class:`ConnectionSettings`.

    """
    return ConnectionSettings(
        exports=exports,
        shared=open_shared(exports),
        tls=tls() if callable(tls) else tls,
        budget=MemoryBudget(memory),
        **others,
    )


class ServerProtocol(StreamProtocol):
    """A stream whose peer may be anybody.

    Attributes:
        stalled: how the client was found not to go on, in words; None while it goes on.

    Args:
        on_connected: called with this, once.
        is_short: whether others wait for memory.

    """

    def __init__(
        self, on_connected: Callable[[ServerProtocol], None], is_short: Callable[[], bool]
    ) -> None:
        super().__init__()
        self.stalled: str | None = None
        self.is_short = is_short
        self._on_connected: Callable[[ServerProtocol], None] | None = on_connected
        self._monitor = StallMonitor(
            self._progress, is_short, partial(self.abort_stalled, "it has read too little")
        )
        self._congestions = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the transport, and again when TLS has begun."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        if self._on_connected is not None:
            _enlarge_buffer(self.transport.get_extra_info("socket"))
            tell, self._on_connected = self._on_connected, None
            tell(self)

    def pause_writing(self) -> None:
        """As in the base class; a client that does not read is not waited for without end."""
        super().pause_writing()
        self._congestions += 1
        self._monitor.start()

    def abort_stalled(self, how: str, seconds: float) -> None:
        """Close the connection at once.

        Args:
            how: the client has stalled, in words.
            seconds: for how long.

        """
        self.stalled = f"{how} for {seconds:g} s"
        logger.warning("%s: %s; it is given up", self.peer(), self.stalled)
        self.transport.abort()

    def peer(self) -> str:
        """The client's address in words."""
        return address(self.transport.get_extra_info("peername"))

    def _progress(self) -> Progress | None:
        if not self.write_paused or self.transport.is_closing():
            return None
        return self._congestions, self.queued - self.transport.get_write_buffer_size()


class ServerConnection:
    """A client that is connected.

    Attributes:
        number: which of the server's clients it is.
        peer: its address in words.
        export: the name of the export that it uses; None during the handshake.
        stats: counters of its requests.
        reason: why it was turned away, or has left, in words; None while that is in order.

    """

    def __init__(self, settings: ConnectionSettings, stream: ServerProtocol, number: int) -> None:
        self.number = number
        self.peer = stream.peer()
        self.export: str | None = None
        self.stats = Stats()
        self.reason: str | None = None
        self._settings = settings
        self._stream = stream
        self._over_tls = False
        self._closed = False
        self._opened: dict[str, OpenDevice] = {}
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        """Who uses what."""
        return f"<Connection of {self.peer} to {self.export!r}>"

    def stop(self) -> None:
        """Take no more requests; what is in flight is answered."""
        set_once(self._stopping)

    async def run(self) -> None:
        """Serve the client until it leaves, or is told to; never raises."""
        try:
            agreement = await self._negotiate()
            if agreement is not None:
                await self._transmit(agreement)
        finally:
            await self._close()
            for opened in self._opened.values():
                await opened.close(self._settings.drain_timeout)

    # Handshake

    async def _negotiate(self) -> NegotiationResult | None:
        settings = self._settings
        tls = TLSMode.REQUIRED if settings.require_tls else TLSMode.OFFERED
        listed = {name: export.description for name, export in settings.exports.items()}
        handshake = ServerHandshake(listed, tls=tls if settings.tls is not None else TLSMode.OFF)
        negotiating = asyncio.create_task(
            run_handshake(
                handshake, self._stream, start_tls=self._start_tls, open_export=self._open_export
            )
        )
        steps: list[asyncio.Future[Any]] = [negotiating, self._stopping]
        await asyncio.wait(
            steps,
            timeout=settings.handshake_timeout,
            return_when=asyncio.FIRST_COMPLETED,
        )
        self.reason = handshake.refusal
        if not negotiating.done():
            self.reason = "it was told to leave before it had chosen an export"
            if not self._stopping.done():
                self.reason = f"no agreement within {settings.handshake_timeout:g} s"
                settings.complaints.warn("%s: %s", self.peer, self.reason)
            negotiating.cancel()
            await asyncio.wait([negotiating], timeout=CLOSE_TIMEOUT)
        return self._outcome(negotiating)

    def _outcome(
        self, negotiating: asyncio.Task[NegotiationResult | None]
    ) -> NegotiationResult | None:
        if not negotiating.done() or negotiating.cancelled():
            return None
        error = negotiating.exception()
        if error is None:
            return negotiating.result()
        if isinstance(error, (EOFError, ConnectionError)):
            logger.debug("%s left during the handshake", self.peer)
        elif isinstance(error, (ProtocolError, OSError)):
            self.reason = format_error(error)
            complain = self._settings.complaints.warn
            complain("%s: the handshake failed: %s", self.peer, self.reason)
        else:
            self.reason = f"the handshake failed: {type(error).__name__}"
            logger.error("%s: the handshake failed", self.peer, exc_info=error)
        return None

    async def _start_tls(self) -> None:
        assert self._settings.tls is not None  # or TLS would not have been offered
        await self._stream.start_tls(self._settings.tls, server_side=True)
        self._over_tls = True

    async def _open_export(self, name: str) -> ExportInfo | None:
        opened = self._settings.shared.get(name) or self._opened.get(name)
        if opened is None:
            try:
                opened = await open_device(name, self._settings.exports[name])
            except STOP_EXCEPTIONS:
                raise
            except BaseException as exc:  # a factory may raise anything
                # Again and again, since clients come again.
                self._settings.failures.report_bug(f"export {name!r}", "opening it", exc)
                return None
            self._opened[name] = opened
        return opened.info

    # Transmission phase

    async def _transmit(self, agreement: NegotiationResult) -> None:
        settings, stream = self._settings, self._stream
        opened = settings.shared.get(agreement.name) or self._opened[agreement.name]
        self.export = agreement.name
        logger.info("%s uses export %r", self.peer, agreement.name)
        settings.feed.publish(
            ClientConnected(self.number, self.peer, agreement.name, self._over_tls)
        )
        share = ConnectionQuota(settings.budget, settings.connection_memory)
        dispatcher = Dispatcher(
            opened.adapter,
            self.stats,
            negotiated=agreement,
            quota=share,
            limiter=ConcurrencyLimiter(settings.concurrency),
            handler_timeout=settings.handler_timeout,
            slow_request=settings.slow_request,
            reporter=Reporter(settings.failures, opened.device, f"export {agreement.name!r}"),
            on_event=self._publish,
            on_disconnect=self.stop,
            on_unfinished=lambda: monitor.start(),
        )
        dispatcher.attach_stream(stream)
        monitor = StallMonitor(
            dispatcher.unfinished,
            stream.is_short,
            partial(stream.abort_stalled, "it has sent too little of a request"),
        )
        idling = IdleTimer(settings.idle_timeout, lambda: dispatcher.idle_since, self._reject)
        serving = asyncio.create_task(dispatcher.run())
        await asyncio.wait([serving, self._stopping], return_when=asyncio.FIRST_COMPLETED)
        monitor.stop()
        idling.stop()
        serving.cancel()
        await asyncio.wait([serving])
        self.reason = self._end_reason(serving)
        await self._finish(dispatcher)
        dispatcher.close()
        await self._close()
        share.close()  # not before the replies have left

    async def _finish(self, dispatcher: Dispatcher) -> None:
        """Let the requests in flight end, if need be by force."""
        drained = dispatcher.drained()
        expired = self._settings.expired
        forgotten: int | None = None
        while not drained.done() and not expired.done():
            await asyncio.wait(
                [drained, expired], timeout=RECHECK_INTERVAL, return_when=asyncio.FIRST_COMPLETED
            )
            before, forgotten = forgotten, dispatcher.abandoned()
            if forgotten and forgotten == before:
                self.reason = "requests in flight were interrupted; they are given up"
                logger.warning("%s: %s", self.peer, self.reason)
                dispatcher.abort()
                return
        if not drained.done():
            self.reason = "requests in flight took too long; they are given up"
            logger.warning("%s: %s", self.peer, self.reason)
            dispatcher.abort()
            await asyncio.wait([drained], timeout=CLOSE_TIMEOUT)

    def _end_reason(self, serving: asyncio.Task[None]) -> str | None:
        """The reason, in words; None if it was in order."""
        error = None if serving.cancelled() else serving.exception()
        if self._stream.stalled is not None:
            return self._stream.stalled
        if error is None and self._stopping.done():
            return self.reason
        if error is None or isinstance(error, (EOFError, ConnectionError)):
            logger.info("%s left without a word", self.peer)
            return "it left without a word"
        if isinstance(error, (ProtocolError, OSError)):
            complain = self._settings.complaints.warn
            complain("%s: the connection was broken off: %s", self.peer, format_error(error))
            return format_error(error)
        logger.error("%s: the connection was broken off", self.peer, exc_info=error)
        return f"the connection was broken off: {type(error).__name__}"

    def _reject(self) -> None:
        self.reason = f"it has been idle for {self._settings.idle_timeout:g} s"
        logger.info("%s: %s", self.peer, self.reason)
        self.stop()

    def _publish(self, event: RequestEvent) -> None:
        if self._settings.feed.has_listeners:
            self._settings.feed.publish(
                replace(event, client=self.number, peer=self.peer, export=self.export)
            )

    async def _close(self) -> None:
        stream = self._stream
        if not self._closed:
            stream.transport.close()
            await asyncio.wait([stream.closed], timeout=CLOSE_TIMEOUT)
            if not stream.closed.done():
                stream.transport.abort()
                await asyncio.wait([stream.closed], timeout=RECHECK_INTERVAL)
            self._closed = True
            stream.reader.release()


def _enlarge_buffer(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)


def format_error(error: BaseException) -> str:
    """What went wrong, for people."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
