"""One client's connection, from the handshake through transmission to the graceful shutdown.

:meth:`ServerConnection.run` reads top-down: handshake (:meth:`~ServerConnection._negotiate`),
transmission phase (:meth:`~ServerConnection._transmit`), drain (:meth:`~ServerConnection._drain`),
close. What holds here:

* Every request that was received is answered, also when the client has closed its sending side or
  the server shuts down, unless the drain deadline passes or the client stalls.
* The memory of a connection is refunded when its replies were sent or the connection is closed.
* However the connection ends, the devices that were opened for it are flushed and unmounted.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..aio.tasks import RECHECK_INTERVAL, set_once
from ..bitmaps import list_bitmaps
from ..dispatch import (
    ConcurrencyLimiter,
    ConnectionQuota,
    Dispatcher,
    FailureLog,
    HandlerLimits,
    MemoryBudget,
    Reporter,
    Stats,
)
from ..errors import STOP_EXCEPTIONS, ProtocolError
from ..events import ClientConnected, EventBroadcaster, RequestEvent
from ..protocol import ExportInfo, NegotiationResult, ServerHandshake, TLSMode
from ..stream import run_handshake, start_tls
from .client_stream import ServerProtocol
from .exports import Export, OpenDevice, open_device, open_shared
from .stalls import IdleTimer, StallMonitor
from .warning_limiter import WarningLimiter

logger = logging.getLogger("aiovblk")

CLOSE_TIMEOUT = 5.0
"""Seconds for a client to read its last replies, and for cancelled handlers to end."""


@dataclass(slots=True)
class ConnectionSettings:
    """Hold what all connections of a server in one process share; options as in ``serve``."""

    exports: Mapping[str, Export]
    shared: Mapping[str, OpenDevice]
    """The open devices that connections share, by export name."""
    tls: ssl.SSLContext | None
    require_tls: bool
    handshake_timeout: float
    drain_timeout: float
    limits: HandlerLimits
    connection_memory: int
    budget: MemoryBudget
    """The memory budget of all connections together."""
    idle_timeout: float | None = None
    drain_expired: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Done when the drain deadline has passed, or a shutdown is forced: handlers are cancelled."""
    broadcaster: EventBroadcaster = field(default_factory=EventBroadcaster)
    """Publishes the events of clients and their requests."""
    failures: FailureLog = field(default_factory=FailureLog)
    """Logs why requests fail, rate-limited."""
    warnings: WarningLimiter = field(default_factory=WarningLimiter)
    """Logs refused and broken clients, rate-limited."""


def make_settings(
    *,
    exports: Mapping[str, Export],
    tls: ssl.SSLContext | Callable[[], ssl.SSLContext] | None,
    memory: int,
    **others: Any,
) -> ConnectionSettings:
    """Make the settings of this process's connections: load certificates, open shared devices.

    Args:
        exports: by name.
        tls: the context, or a function that makes it.
        memory: bytes for the requests in flight of all connections.
        others: as in :class:`ConnectionSettings`.

    """
    return ConnectionSettings(
        exports=exports,
        shared=open_shared(exports),
        tls=tls() if callable(tls) else tls,
        budget=MemoryBudget(memory),
        **others,
    )


class ServerConnection:
    """Serve one connected client.

    Attributes:
        number: of the client; all that the server has accepted are counted from 1.
        peer: its address in words.
        export: the name of the export that it uses; None during the handshake.
        stats: counters of its requests.
        reason: why it was refused or its connection ended, in words; None after an orderly end.

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
        """Name the client and its export."""
        return f"<Connection of {self.peer} to {self.export!r}>"

    def stop(self) -> None:
        """Begin a graceful shutdown: read no more requests; those in flight are answered."""
        set_once(self._stopping)

    async def run(self) -> None:
        """Serve the client until it disconnects or :meth:`stop` is called; never raises."""
        try:
            negotiated = await self._negotiate()
            if negotiated is not None:
                await self._transmit(negotiated)
        finally:
            await self._close()
            for opened in self._opened.values():
                await opened.close(self._settings.drain_timeout)

    # Handshake

    async def _negotiate(self) -> NegotiationResult | None:
        """Run the handshake within the handshake timeout; None if it led to no export."""
        settings = self._settings
        tls = TLSMode.REQUIRED if settings.require_tls else TLSMode.OFFERED
        listed = {name: export.description for name, export in settings.exports.items()}
        handshake = ServerHandshake(listed, tls=tls if settings.tls is not None else TLSMode.OFF)
        negotiating = asyncio.create_task(
            run_handshake(
                handshake,
                self._stream,
                start_tls=self._start_tls,
                open_export=self._open_export,
                list_bitmaps=self._list_bitmaps,
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
            self.reason = "the server closed the connection before the client chose an export"
            if not self._stopping.done():
                self.reason = (
                    f"handshake timeout: no export chosen in {settings.handshake_timeout:g} s"
                )
                settings.warnings.warn("%s: %s", self.peer, self.reason)
            negotiating.cancel()
            await asyncio.wait([negotiating], timeout=CLOSE_TIMEOUT)
        return self._handshake_result(negotiating)

    def _handshake_result(
        self, negotiating: asyncio.Task[NegotiationResult | None]
    ) -> NegotiationResult | None:
        if not negotiating.done() or negotiating.cancelled():
            return None
        error = negotiating.exception()
        if error is None:
            return negotiating.result()
        if isinstance(error, (EOFError, ConnectionError)):
            logger.debug("%s disconnected during the handshake", self.peer)
        elif isinstance(error, (ProtocolError, OSError)):
            self.reason = format_error(error)
            self._settings.warnings.warn("%s: the handshake failed: %s", self.peer, self.reason)
        else:
            self.reason = f"the handshake failed: {type(error).__name__}"
            logger.error("%s: the handshake failed", self.peer, exc_info=error)
        return None

    async def _start_tls(self) -> None:
        assert self._settings.tls is not None  # or TLS would not have been offered
        await start_tls(self._stream, self._settings.tls, server_side=True)
        self._over_tls = True

    async def _open_export(self, name: str) -> ExportInfo | None:
        opened = await self._open(name)
        return None if opened is None else opened.info

    async def _list_bitmaps(self, name: str) -> Sequence[str] | None:
        opened = await self._open(name)
        if opened is None:
            return None
        try:
            return await list_bitmaps(opened.device)
        except STOP_EXCEPTIONS:
            raise
        except BaseException as exc:  # a device may raise anything
            what, device = "listing its dirty bitmaps", opened.device
            self._settings.failures.report_bug(f"export {name!r}", what, exc, device=device)
            return None

    async def _open(self, name: str) -> OpenDevice | None:
        """Return the device of an export; None if it cannot be opened, which is logged."""
        opened = self._settings.shared.get(name) or self._opened.get(name)
        if opened is None:
            try:
                opened = await open_device(name, self._settings.exports[name])
            except STOP_EXCEPTIONS:
                raise
            except BaseException as exc:  # a factory may raise anything
                # Rate-limited, since clients retry.
                self._settings.failures.report_bug(f"export {name!r}", "opening it", exc)
                return None
            self._opened[name] = opened
        return opened

    # Transmission phase

    async def _transmit(self, negotiated: NegotiationResult) -> None:
        """Serve requests until the client disconnects or the connection is stopped; then drain."""
        settings = self._settings
        self.export = negotiated.name
        logger.info("%s uses export %r", self.peer, negotiated.name)
        settings.broadcaster.publish(
            ClientConnected(self.number, self.peer, negotiated.name, self._over_tls)
        )
        quota = ConnectionQuota(settings.budget, settings.connection_memory)
        dispatcher, monitor = self._make_dispatcher(negotiated, quota)
        idle_timer = IdleTimer(
            settings.idle_timeout, lambda: dispatcher.idle_since, self._stop_idle
        )
        serving = asyncio.create_task(dispatcher.run())
        await asyncio.wait([serving, self._stopping], return_when=asyncio.FIRST_COMPLETED)
        monitor.stop()
        idle_timer.stop()
        serving.cancel()
        await asyncio.wait([serving])
        self.reason = self._end_reason(serving)
        await self._drain(dispatcher)
        dispatcher.close()
        await self._close()
        quota.close()  # not before the replies were sent

    def _make_dispatcher(
        self, negotiated: NegotiationResult, quota: ConnectionQuota
    ) -> tuple[Dispatcher, StallMonitor]:
        """Make what serves the requests, and what watches that they arrive whole."""
        settings, stream = self._settings, self._stream
        opened = settings.shared.get(negotiated.name) or self._opened[negotiated.name]
        dispatcher = Dispatcher(
            opened.adapter,
            self.stats,
            negotiated=negotiated,
            quota=quota,
            limiter=ConcurrencyLimiter(settings.limits.concurrency),
            handler_timeout=settings.limits.handler_timeout,
            slow_request=settings.limits.slow_request,
            busy_poll=settings.limits.busy_poll,
            reporter=Reporter(settings.failures, opened.device, f"export {negotiated.name!r}"),
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
        return dispatcher, monitor

    def _end_reason(self, serving: asyncio.Task[None]) -> str | None:
        """Return why the transmission phase ended, in words; None after an orderly end."""
        error = None if serving.cancelled() else serving.exception()
        if self._stream.stalled is not None:
            return self._stream.stalled
        if error is None and self._stopping.done():
            return self.reason
        if error is None or isinstance(error, (EOFError, ConnectionError)):
            reason = "disconnected without NBD_CMD_DISC"
            logger.info("%s: %s", self.peer, reason)
            return reason
        if isinstance(error, (ProtocolError, OSError)):
            reason = format_error(error)
            self._settings.warnings.warn("%s: connection aborted: %s", self.peer, reason)
            return reason
        logger.error("%s: connection aborted", self.peer, exc_info=error)
        return f"connection aborted: {type(error).__name__}"

    def _stop_idle(self) -> None:
        self.reason = f"idle timeout: no request for {self._settings.idle_timeout:g} s"
        logger.info("%s: %s", self.peer, self.reason)
        self.stop()

    def _publish(self, event: RequestEvent) -> None:
        if self._settings.broadcaster.has_listeners:
            self._settings.broadcaster.publish(
                replace(event, client=self.number, peer=self.peer, export=self.export)
            )

    # Graceful shutdown

    async def _drain(self, dispatcher: Dispatcher) -> None:
        """Wait until requests in flight are answered; cancel them at the drain deadline.

        It also aborts what can never be answered, since an interrupt (KeyboardInterrupt) has hit
        the code that was to answer it; see :data:`aiovblk.aio.tasks.RECHECK_INTERVAL`.
        """
        drained = dispatcher.drained()
        expired = self._settings.drain_expired
        abandoned: int | None = None
        while not drained.done() and not expired.done():
            await asyncio.wait(
                [drained, expired], timeout=RECHECK_INTERVAL, return_when=asyncio.FIRST_COMPLETED
            )
            before, abandoned = abandoned, dispatcher.abandoned()
            if abandoned and abandoned == before:
                self.reason = "requests in flight were interrupted; they are aborted"
                logger.warning("%s: %s", self.peer, self.reason)
                dispatcher.abort()
                return
        if not drained.done():
            self.reason = "requests in flight took too long; they are cancelled"
            logger.warning("%s: %s", self.peer, self.reason)
            dispatcher.abort()
            await asyncio.wait([drained], timeout=CLOSE_TIMEOUT)

    async def _close(self) -> None:
        """Close the connection once its last replies were sent, or after CLOSE_TIMEOUT."""
        stream = self._stream
        if not self._closed:
            stream.transport.close()
            await asyncio.wait([stream.closed], timeout=CLOSE_TIMEOUT)
            if not stream.closed.done():
                stream.transport.abort()
                await asyncio.wait([stream.closed], timeout=RECHECK_INTERVAL)
            self._closed = True
            stream.reader.release()


def format_error(error: BaseException) -> str:
    """Return an error's message without its number; its class name where it has none."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
