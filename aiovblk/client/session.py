"""The connections to one export: which of them a request takes, and what happens when they break.

What holds here:

* The session lives until it is closed or given up. Then every request fails with ENOTCONN.
* Requests take the connection with the fewest in flight. Where there is none, but one is being
  made, they wait.
* A request whose connection broke is made again where that does no harm. A WRITE may do harm: the
  old connection's server may execute the first copy yet, after a later write to the same place.
* A server that went down may have lost writes that it had acknowledged and that no flush has made
  durable. The first flush after that fails, so that whoever relies on flushes is told once.
* A server that breaks the protocol, or that comes back as another, is given up at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio

from ..errors import Error, ProtocolError
from ..protocol import Command, NegotiationResult, TransmissionFlag
from .connection import ClientConnection, ConnectionLostError

logger = logging.getLogger("aiovblk")

CLOSE_TIMEOUT = 10.0
"""Seconds for requests in flight to be answered, and for the connections to close after that."""

MIN_PAUSE, MAX_PAUSE = 0.1, 5.0
"""Seconds between attempts to reconnect; each pause is twice the one before."""

MIN_ATTEMPT_TIMEOUT = 1.0
"""Seconds for each attempt at least, however little is left, so that the last one tells why."""

MAX_ATTEMPTS = 5
"""How often one request is made. Where the request itself breaks the server, more does not help."""

Dial = Callable[[float | None], Awaitable[ClientConnection]]
"""Makes a connection, within that many seconds if they are fewer than its own limit."""

_REPEATABLE = {Command.READ, Command.BLOCK_STATUS, Command.CACHE, Command.FLUSH}
_STORING = {Command.WRITE, Command.WRITE_ZEROES}
_CAPABILITIES = (
    TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.SEND_CACHE
)


class Session:
    """Carries the requests of one device.

    Args:
        name: of the export, for messages: its URI.
        dial: makes a connection.
        connections: how many there are, where the server allows for more than one.
        reconnect: seconds after a loss in which to get a connection again; None not to try.
        replay_writes: whether WRITE, TRIM and WRITE_ZEROES may be made again.

    Attributes:
        negotiated: what the first handshake led to; those that follow led to no less.

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
        self._repeatable = {*Command} if replay_writes else _REPEATABLE
        self._loop = asyncio.get_running_loop()
        self._live: list[ClientConnection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._ended: str | None = None
        # How many writes were acknowledged, how many of those a flush has made durable, and how
        # many are on a server that went down before one could.
        self._stored = 0
        self._durable = 0
        self._uncertain = 0

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._live)

    async def start(self) -> None:
        """Make the first connection; the others follow by themselves.

        Those are not waited for: a server that allows for many may still take one at a time
        (qemu-nbd without --shared does), and leave the next one without an answer.

        Raises:
            OSError: there is no connection.
            ProtocolError: the server does not speak NBD, or refuses the export.

        """
        first = await self._dial(None)
        self.negotiated = first.negotiated
        self._join(first)
        if self.negotiated.info.flags & TransmissionFlag.CAN_MULTI_CONN:
            for _ in range(self._connections - 1):
                self._spawn(self._add())

    async def request(self, command: Command, *where: int, **options: Any) -> Any:
        """Make a request; the arguments are those of :meth:`ClientConnection.call`.

        Raises:
            OSError: the server could not; or there is no connection any more.

        Cancellation: the request is not taken back.

        """
        for _ in range(MAX_ATTEMPTS):
            connection = await self._least_busy()
            try:
                result = await connection.call(command, *where, **options)
            except ConnectionLostError as exc:
                lost = exc
                if lost.sent:
                    self._check_repeatable(command)
                continue
            if command in _STORING:
                self._note_stored(connection)
            return result
        raise OSError(errno.EIO, f"{self._name}: the connection broke at each attempt: {lost}")

    async def flush(self) -> None:
        """Make every write that was acknowledged durable.

        Raises:
            OSError: the server could not; or it may have lost some, which is told once.

        """
        self._raise_if_writes_lost()
        stored = self._stored
        await self.request(Command.FLUSH)
        self._durable = max(self._durable, stored)

    async def close(self) -> None:
        """Let requests in flight be answered, and close; new ones fail.

        Takes :data:`CLOSE_TIMEOUT` at most.

        Cancellation: what is in flight is given up.

        """
        self._end(f"the connection to {self._name} is closed")
        with anyio.CancelScope(shield=True):
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await asyncio.gather(*(each.close() for each in self._live))
            except TimeoutError:
                logger.warning("%s did not answer everything before it was closed", self._name)
            finally:
                await self._abort()

    # Requests

    async def _least_busy(self) -> ClientConnection:
        while not self._live or self._ended is not None:
            if self._ended is not None:
                raise OSError(errno.ENOTCONN, self._ended)
            self._changed.clear()
            await self._changed.wait()
        return min(self._live, key=_in_flight)

    def _check_repeatable(self, command: Command) -> None:
        if self._ended is not None:
            raise OSError(errno.ENOTCONN, self._ended)
        if command is Command.FLUSH:
            self._raise_if_writes_lost()
        if command not in self._repeatable:
            reason = "the connection broke; it is not known whether this was stored"
            raise OSError(errno.EIO, f"{self._name}: {reason}")

    def _note_stored(self, connection: ClientConnection) -> None:
        if connection in self._live:
            self._stored += 1
        elif self._has_cache:  # it broke right after its answer
            self._uncertain += 1

    def _raise_if_writes_lost(self) -> None:
        if self._uncertain:
            count, self._uncertain = self._uncertain, 0
            reason = f"it is not known whether {count} writes from before the connection broke"
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
        if error is not None and self._ended is None:
            logger.error("%s: a bug in aiovblk", self._name, exc_info=error)
            if not self._live:  # nobody else is about to make a connection, for which all wait
                self._fail_permanently(error)

    def _join(self, connection: ClientConnection) -> None:
        self._live.append(connection)
        self._changed.set()
        self._spawn(self._run_connection(connection))

    async def _run_connection(self, connection: ClientConnection) -> None:
        try:
            why = await connection.run()
        finally:
            self._live.remove(connection)
        if self._ended is not None:
            return
        if self._has_cache:
            self._uncertain += self._stored - self._durable
        self._durable = self._stored
        if self._reconnect is None or isinstance(why, ProtocolError):
            self._fail_permanently(why)
        else:
            await self._replace(why, self._reconnect)

    async def _add(self) -> None:
        try:
            connection = await self._dial_same(None)
        except (OSError, Error) as exc:
            logger.debug("no further connection to %s: %s", self._name, exc)
        else:
            self._join(connection)

    async def _replace(self, why: Exception, seconds: float) -> None:
        """Make a connection in place of one that was lost."""
        logger.warning("the connection to %s was lost (%s); reconnecting", self._name, _text(why))
        lost = self._loop.time()
        pause = min(MIN_PAUSE, seconds / 2)
        left = seconds
        while left > 0:
            await asyncio.sleep(min(pause, left))
            try:
                connection = await self._dial_same(max(left, MIN_ATTEMPT_TIMEOUT))
            except (OSError, ProtocolError) as exc:
                logger.debug("no connection to %s yet: %s", self._name, _text(exc))
                why = exc
                pause = min(2 * pause, MAX_PAUSE)
                left = lost + seconds - self._loop.time()
            except Error as exc:
                self._fail_permanently(exc)
                return
            else:
                self._join(connection)
                duration = self._loop.time() - lost
                logger.warning("the connection to %s is back after %.1f s", self._name, duration)
                return
        if self._live:
            logger.warning("%s does without one connection: %s", self._name, _text(why))
        else:
            self._fail_permanently(why)

    async def _dial_same(self, timeout: float | None) -> ClientConnection:
        """Make another connection to what the first one led to.

        Raises:
            Error: it led to something else.

        """
        connection = await self._dial(timeout)
        difference = _difference(self.negotiated, connection.negotiated)
        if difference is None and self._ended is None:
            return connection
        connection.abort()
        raise Error(f"the server now {difference}" if difference else "it is not needed any more")

    def _fail_permanently(self, why: BaseException) -> None:
        if self._ended is None:
            self._end(f"the connection to {self._name} was lost: {_text(why)}")
            logger.warning("%s", self._ended)
        for each in self._live:
            each.abort()

    def _end(self, reason: str) -> None:
        self._ended = self._ended or reason
        self._changed.set()

    async def _abort(self) -> None:
        for each in self._live:
            each.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


def _in_flight(connection: ClientConnection) -> int:
    return connection.in_flight


def _text(exc: BaseException) -> str:
    return (isinstance(exc, OSError) and exc.strerror) or str(exc) or type(exc).__name__


def _difference(first: NegotiationResult, other: NegotiationResult) -> str | None:
    """What ``other`` has less than ``first``, in words."""
    info, now = first.info, other.info
    if now.size != info.size:
        return f"has {now.size} bytes instead of {info.size}"
    if missing := info.flags & ~now.flags & _CAPABILITIES:
        return f"lacks {', '.join(each.name or '' for each in missing)}"
    if now.flags & ~info.flags & TransmissionFlag.READ_ONLY:
        return "is read-only"
    if now.minimum_block > info.minimum_block or now.maximum_payload < info.maximum_payload:
        return "has other block sizes"
    if other.mode < first.mode or (
        first.allocation_context_id is not None and other.allocation_context_id is None
    ):
        return "speaks less of the protocol"
    return None
