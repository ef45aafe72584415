"""A client's session: several connections to one export, reconnect with backoff, and replay.

What holds here:

* The session lives until it is closed or fails permanently. Then every request fails with ENOTCONN.
* A request takes the least busy connection: the one with the fewest requests in flight. Where there
  is none, but one is being made, requests wait.
* A request whose connection was lost is replayed on another connection where that does no harm. The
  replay of a WRITE may do harm: the old connection's server may execute the first copy late, after
  a later write to the same place.
* A server that went down may have lost writes that it had acknowledged and that no flush has made
  durable. The first flush after that fails, once, so that a caller who relies on flushes knows.
* If a server violates the protocol, or comes back with another export, the session fails at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import anyio

from ..errors import Error, ProtocolError
from ..protocol import BASE_ALLOCATION, Command, NegotiationResult, TransmissionFlag
from ..text import quote
from .connection import ClientConnection, ConnectionLostError

logger = logging.getLogger("aiovblk")

CLOSE_TIMEOUT = 10.0
"""Seconds at a graceful close for requests in flight to be answered and connections to close."""

MIN_BACKOFF, MAX_BACKOFF = 0.1, 5.0
"""Seconds from the beginning of one attempt to reconnect to the next: exponential backoff, twice as
many each time."""

MIN_ATTEMPT_TIMEOUT, MAX_ATTEMPT_TIMEOUT = 1.0, 5.0
"""Seconds for an attempt to reconnect. At least one, also at the deadline, so that the last attempt
fails with the cause rather than with a timeout. At most five, since one that hangs (a server that
is stopped, packets that are dropped) tells nothing about the next; but twice as many as the first
connection took, where that is more."""

MAX_ATTEMPTS = 5
"""How often a request is sent at most. If the request itself breaks the server, more retries do not
help."""

Dial = Callable[[float | None], Awaitable[ClientConnection]]
"""Makes a connection, within so many seconds if they are fewer than its own timeout."""

_REPLAYABLE = {Command.READ, Command.BLOCK_STATUS, Command.CACHE, Command.FLUSH}
_CAPABILITIES = (
    TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.SEND_CACHE
)


class Session:
    """Send the requests of one device over its connections; reconnect and replay them.

    Args:
        name: of the export, for messages: its URI.
        dial: makes a connection.
        connections: how many, where the server permits more than one.
        reconnect: seconds after a loss during which reconnecting is retried; None for no retry.
        replay_writes: whether WRITE, TRIM and WRITE_ZEROES may be replayed.

    Attributes:
        negotiated: the result of the first handshake; later ones must not offer less.

    """

    negotiated: NegotiationResult

    def __init__(
        self,
        name: str,
        dial: Dial,
        *,
        connections: int,
        reconnect: float | None,
        replay_writes: bool,
    ) -> None:
        self._name = name
        self._dial = dial
        self._connections = connections
        self._reconnect = reconnect
        self._replayable = {*Command} if replay_writes else _REPLAYABLE
        self._loop = asyncio.get_running_loop()
        self._live: list[ClientConnection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._end_reason: str | None = None
        self._attempt_timeout = MAX_ATTEMPT_TIMEOUT
        # How many writes were acknowledged, how many of those a flush has made durable, and how
        # many may be lost, since their connection was lost before a flush.
        self._acknowledged = self._durable = self._maybe_lost = 0

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._live)

    async def start(self) -> None:
        """Make the first connection; the others join in the background.

        Those are not waited for: a server that permits several may still accept one at a time
        (qemu-nbd without --shared does), and never answer the next one.

        Raises:
            OSError: connecting failed.
            ProtocolError: the server does not speak NBD, or refuses the export.

        """
        begin = self._loop.time()
        first = await self._dial(None)
        self._attempt_timeout = max(MAX_ATTEMPT_TIMEOUT, 2 * (self._loop.time() - begin))
        self.negotiated = first.negotiated
        self._join(first)
        if self.negotiated.info.flags & TransmissionFlag.CAN_MULTI_CONN:
            for _ in range(self._connections - 1):
                self._spawn(self._add())

    async def request(
        self,
        command: Command,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: bytes | memoryview | None = None,
        into: memoryview | None = None,
        contexts: Sequence[str] | None = None,
    ) -> Any:
        """Send a request over the least busy connection; retry it if that connection is lost.

        The arguments are those of :meth:`ClientConnection.call`; with ``contexts`` it is a
        BLOCK_STATUS, by :meth:`ClientConnection.block_status`.

        Raises:
            OSError: the server answered with an error; EIO: the connection was lost, and a replay
                may do harm, or has failed :data:`MAX_ATTEMPTS` times; ENOTCONN: the session has
                ended.

        Cancellation: the request is not withdrawn.

        """
        for _ in range(MAX_ATTEMPTS):
            connection = self._least_busy() or await self._next_connection()
            try:
                if contexts is None:
                    result = await connection.call(command, offset, length, flags, data, into)
                else:
                    result = await connection.block_status(offset, length, contexts)
            except ConnectionLostError as exc:
                lost = exc
                if lost.sent:
                    self._check_replayable(command)
                continue
            if command is Command.WRITE or command is Command.WRITE_ZEROES:
                self._count_write(connection)
            return result
        raise OSError(
            errno.EIO,
            f"{self._name}: the connection was lost at each of {MAX_ATTEMPTS} attempts: {lost}",
        )

    async def flush(self) -> None:
        """Make all acknowledged writes durable.

        Raises:
            OSError: the server answered with an error; or EIO, once, if it may have lost some.

        """
        self._raise_if_writes_lost()
        acknowledged = self._acknowledged
        await self.request(Command.FLUSH)
        self._durable = max(self._durable, acknowledged)

    async def close(self) -> None:
        """Close gracefully: fail new requests, wait until those in flight are answered.

        Takes :data:`CLOSE_TIMEOUT` at most. No-op: closed already.

        Cancellation: the requests in flight fail.

        """
        self._end(f"the connection to {self._name} is closed")
        with anyio.CancelScope(shield=True):
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await asyncio.gather(*(each.close() for each in self._live))
            except TimeoutError:
                logger.warning(
                    "%s did not answer all requests within %g s; closing anyway",
                    self._name,
                    CLOSE_TIMEOUT,
                )
            finally:
                await self._abort()

    # Requests

    def _least_busy(self) -> ClientConnection | None:
        if self._end_reason is not None:
            raise OSError(errno.ENOTCONN, self._end_reason)
        least, chosen = math.inf, None
        for each in self._live:
            if (in_flight := len(each.calls)) < least and each.refusal is None:
                least, chosen = in_flight, each
        return chosen

    async def _next_connection(self) -> ClientConnection:
        """Wait until there is one again."""
        while (connection := self._least_busy()) is None:
            self._changed.clear()
            await self._changed.wait()
        return connection

    def _check_replayable(self, command: Command) -> None:
        if self._end_reason is not None:
            raise OSError(errno.ENOTCONN, self._end_reason)
        if command is Command.FLUSH:
            self._raise_if_writes_lost()
        if command not in self._replayable:
            reason = (
                f"the connection was lost; it is not known whether this {command.name} was stored"
            )
            raise OSError(errno.EIO, f"{self._name}: {reason}")

    def _count_write(self, connection: ClientConnection) -> None:
        if connection in self._live:
            self._acknowledged += 1
        elif self._has_cache:  # the connection was lost right after the reply
            self._maybe_lost += 1

    def _raise_if_writes_lost(self) -> None:
        if self._maybe_lost:
            count, self._maybe_lost = self._maybe_lost, 0
            reason = f"it is not known whether {count} writes from before the connection was lost"
            raise OSError(errno.EIO, f"{self._name}: {reason} are stored")

    @property
    def _has_cache(self) -> bool:
        return bool(self.negotiated.info.flags & TransmissionFlag.SEND_FLUSH)

    # Connections

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._end_reason is None:
            logger.error("%s: a bug in aiovblk", self._name, exc_info=error)
            if not self._live:  # no other task makes a connection, and all requests wait for one
                self._fail_permanently(error)

    def _join(self, connection: ClientConnection) -> None:
        self._live.append(connection)
        self._changed.set()
        self._spawn(self._run_connection(connection))

    async def _run_connection(self, connection: ClientConnection) -> None:
        """Receive on a connection until it is lost; then reconnect, or fail permanently."""
        try:
            cause = await connection.run()
        finally:
            self._live.remove(connection)
        if self._end_reason is not None:
            return
        if self._has_cache:
            self._maybe_lost += self._acknowledged - self._durable
        self._durable = self._acknowledged
        if self._reconnect is None or isinstance(cause, ProtocolError):
            self._fail_permanently(cause)
        else:
            await self._reconnect_within(self._reconnect, cause)

    async def _add(self) -> None:
        """Add one more connection to the first; without one if that fails."""
        try:
            connection = await self._dial_same(None)
        except (OSError, Error) as exc:
            logger.debug("no further connection to %s: %s", self._name, exc)
        else:
            self._join(connection)

    async def _reconnect_within(self, seconds: float, cause: Exception) -> None:
        """Make a connection in place of one that was lost: retry with exponential backoff."""
        logger.warning("the connection to %s was lost (%s); reconnecting", self._name, _text(cause))
        attempt_at = lost_at = self._loop.time()
        backoff = min(MIN_BACKOFF, seconds / 2)
        remaining = seconds
        while remaining > 0:
            pause = attempt_at + backoff - self._loop.time()
            await asyncio.sleep(min(max(pause, 0), remaining))
            attempt_at = self._loop.time()
            limit = min(max(remaining, MIN_ATTEMPT_TIMEOUT), self._attempt_timeout)
            try:
                connection = await self._dial_same(limit)
            except (OSError, ProtocolError) as exc:
                logger.debug("reconnecting to %s failed: %s", self._name, _text(exc))
                cause = exc
                backoff = min(2 * backoff, MAX_BACKOFF)
                remaining = lost_at + seconds - self._loop.time()
            except Error as exc:
                self._fail_permanently(exc)
                return
            else:
                self._join(connection)
                duration = self._loop.time() - lost_at
                logger.warning("reconnected to %s after %.1f s", self._name, duration)
                return
        if self._live:
            logger.warning(
                "%s: one connection stays lost, the others go on: %s", self._name, _text(cause)
            )
        else:
            self._fail_permanently(cause)

    async def _dial_same(self, timeout: float | None) -> ClientConnection:
        """Make another connection, to the same export as the first one.

        Raises:
            Error: the server offers less, or another size; or the session has ended.

        """
        connection = await self._dial(timeout)
        difference = _difference(self.negotiated, connection.negotiated)
        if difference is None and self._end_reason is None:
            return connection
        connection.abort()
        raise Error(f"the server now {difference}" if difference else "the session has ended")

    def _fail_permanently(self, cause: BaseException) -> None:
        if self._end_reason is None:
            self._end(f"the connection to {self._name} was lost: {_text(cause)}")
            logger.warning("%s", self._end_reason)
        for each in self._live:
            each.abort()

    def _end(self, reason: str) -> None:
        self._end_reason = self._end_reason or reason
        self._changed.set()

    async def _abort(self) -> None:
        for each in self._live:
            each.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


def _text(exc: BaseException) -> str:
    return (isinstance(exc, OSError) and exc.strerror) or str(exc) or type(exc).__name__


def _difference(first: NegotiationResult, other: NegotiationResult) -> str | None:
    """Return what ``other`` offers less than ``first``, in words; None if nothing."""
    info, now = first.info, other.info
    if now.size != info.size:
        return f"has {now.size} bytes instead of {info.size}"
    if missing := info.flags & ~now.flags & _CAPABILITIES:
        return f"lacks {', '.join(each.name or '' for each in missing)}"
    if now.flags & ~info.flags & TransmissionFlag.READ_ONLY:
        return "is read-only"
    if now.minimum_block > info.minimum_block or now.maximum_payload < info.maximum_payload:
        return "has other block sizes"
    gone = [name for name in first.contexts if name not in other.contexts]
    if other.mode < first.mode or BASE_ALLOCATION in gone:
        return "supports less of the protocol"
    if gone:
        return f"lacks the metadata context {', '.join(map(quote, gone))}"
    return None
