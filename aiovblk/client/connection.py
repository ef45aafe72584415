"""One connection of the client in transmission phase: it sends requests and receives replies.

What holds here:

* Requests that are made in one turn of the event loop are sent together, in one call of the
  transport. Those that callers make when their replies arrive are sent in the same turn.
* Nothing of a request is scheduled, and no object but its future is made for it, unless its reply
  comes in parts.
* Backpressure: while the server does not read, no further request is queued. What waits to be sent
  is bounded by :data:`SEND_BUFFER`, and by one request.
* What is queued belongs to the connection. A caller may be cancelled, and its buffer used again,
  while the transport still holds what is to be sent; so memory that may change is copied. What a
  READ returned does not change: data from one server to another is not copied.
* Any violation of the protocol by the server ends the connection.
* With a request timeout, a request that is not answered whole within it ends the connection: its
  reply could still come in parts, at any time, and those behind it wait.
"""

from __future__ import annotations

import asyncio
import errno
import math
import struct
from collections.abc import Awaitable
from functools import partial
from typing import Any

from ..errors import ProtocolError
from ..protocol import Command, NegotiationResult, ReplyMode
from ..protocol.constants import CommandFlag
from ..protocol.extended_requests import EXTENDED_REQUEST, EXTENDED_REQUEST_MAGIC
from ..protocol.requests import REQUEST, REQUEST_MAGIC
from ..stream import PooledBuffer, StreamProtocol
from .receiving import ReplyReceiver

SEND_BUFFER = 1024 * 1024
"""Bytes that may wait to be sent before further requests wait: room for some of a usual size."""


class ConnectionLostError(Exception):
    """Raised when the connection ended before the request was answered.

    Attributes:
        sent: whether the server may have received the request.

    """

    def __init__(self, cause: Exception, *, sent: bool) -> None:
        super().__init__(str(cause))
        self.sent = sent


class ClientConnection:
    """Send requests to a server, any number of them at once, and receive their replies.

    :meth:`run` must run all the time: it receives.

    Args:
        stream: the connection, after the handshake.
        negotiated: the result of the handshake.
        request_timeout: seconds in which each request must be answered; None for no limit.

    Attributes:
        negotiated: the result of the handshake.
        calls: the requests that are not answered yet.
        refusal: why it takes no further requests; None while it does.

    """

    def __init__(
        self,
        stream: StreamProtocol,
        negotiated: NegotiationResult,
        *,
        request_timeout: float | None = None,
    ) -> None:
        self.negotiated = negotiated
        self._request_timeout = request_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._overdue: Exception | None = None
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._replies = ReplyReceiver(stream.reader, negotiated)
        self.calls = self._replies.calls
        self._cookie = 0
        # A WRITE with an extended header is marked as one that has a payload.
        self._payload_flag = 0
        self._serialize = partial(REQUEST.pack, REQUEST_MAGIC)
        if negotiated.mode is ReplyMode.EXTENDED:
            self._payload_flag = int(CommandFlag.PAYLOAD_LEN)
            self._serialize = partial(EXTENDED_REQUEST.pack, EXTENDED_REQUEST_MAGIC)
        self._send_queue: list[bytes | memoryview] = []
        self._queued = 0
        self._send_is_due = False
        self._write_resumed = asyncio.Event()
        self._idle = asyncio.Event()
        self.refusal: Exception | None = None
        stream.on_write_resumed = self._write_resumed.set
        stream.transport.set_write_buffer_limits(SEND_BUFFER)

    def call(
        self,
        command: Command,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        data: bytes | memoryview | None = None,
        into: memoryview | None = None,
    ) -> Awaitable[Any]:
        """Send a request; the result, to be awaited, is that of its reply.

        It is queued at once, unless the server does not read: then when it does.

        Args:
            command: of the request.
            offset: bytes.
            length: bytes, one at least where the command has a range.
            flags: command flags.
            data: of a WRITE; its content may change once the call has ended, but the caller must
                not release this view.
            into: a zeroed buffer that a READ puts its data into.

        Returns:
            A view for READ, a :class:`BlockStatus` for BLOCK_STATUS, else None.

        Raises:
            OSError: the server answered with an error.
            ConnectionLostError: the connection ended before the reply.
            ValueError: the offset or the length does not fit the protocol.

        Cancellation: the request is not withdrawn; its reply is received and dropped.

        """
        if self.refusal is not None:
            raise ConnectionLostError(self.refusal, sent=False)
        if self._stream.write_paused:
            return self._call_later(command, offset, length, flags, data, into)
        cookie = self._cookie = self._cookie + 1
        if data is not None:
            flags |= self._payload_flag
        try:
            header = self._serialize(flags, command, cookie, offset, length)
        except struct.error:  # a number that the protocol has no room for
            reason = f"{command.name} at {offset} of {length} bytes does not fit the protocol"
            raise ValueError(reason) from None
        result: asyncio.Future[Any] = self._loop.create_future()
        if self._request_timeout is None:
            self.calls[cookie] = result, command, offset, length, into, math.inf
        else:
            deadline = self._loop.time() + self._request_timeout
            self.calls[cookie] = result, command, offset, length, into, deadline
            self._start_timer()
        self._send_queue.append(header)
        if data is not None:
            self._queue_data(data)
        self._send_soon()
        return result

    async def run(self) -> Exception:
        """Receive until the connection ends; then fail the requests that were not answered.

        Returns:
            Why it ended.

        """
        cause: Exception = ConnectionAbortedError("it was aborted by this client")
        try:
            cause = await self._receive()
        finally:
            self._fail_calls(self._overdue or cause)
        return self._overdue or cause

    async def close(self) -> None:
        """Shut down gracefully: wait until all requests are answered, send NBD_CMD_DISC, close.

        Cancellation: call :meth:`abort`.

        """
        self._refuse_calls()
        while self.calls:
            self._idle.clear()
            await self._idle.wait()
        self._send_queue.append(self._serialize(0, Command.DISC, 0, 0, 0))
        self._send()
        self._stream.transport.close()
        await asyncio.wait([self._stream.closed])

    def abort(self) -> None:
        """Close at once; :meth:`run` ends soon after."""
        self._refuse_calls()
        self._stream.transport.abort()

    # Sending

    async def _call_later(self, *args: Any) -> Any:
        """Do :meth:`call` once the server reads again, or fail it if the connection ends."""
        while self._stream.write_paused and self.refusal is None:
            self._write_resumed.clear()
            await self._write_resumed.wait()
        return await self.call(*args)

    def _refuse_calls(self) -> None:
        self.refusal = self.refusal or ConnectionError("it is closed")

    def _queue_data(self, data: bytes | memoryview) -> None:
        self._send_queue.append(data if _is_constant(data) else bytes(data))
        self._queued += len(data)
        if self._queued > SEND_BUFFER:
            self._send()  # so that the next request sees whether it must wait

    def _send_soon(self) -> None:
        if not self._send_is_due:
            self._send_is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._send_is_due = False
        if not self._send_queue:
            return
        buffers, self._send_queue = self._send_queue, []
        if not self._queued and len(buffers) > 1:
            buffers = [b"".join(buffers)]  # a copy of some headers costs less than their vector
        self._queued = 0
        self._stream.send(buffers)

    # Receiving

    async def _receive(self) -> Exception:
        try:
            await self._stream.reader.consume(self._take_replies)
        except EOFError:
            return ConnectionResetError("the server closed it within a reply")
        except (OSError, ProtocolError) as exc:
            return exc
        return ConnectionResetError("the server closed it")

    def _take_replies(self) -> bool:
        self._replies.take()
        # Behind the callers that go on now, so that what they request next is sent in their turn.
        self._send_soon()
        if self.refusal is not None and not self.calls:
            self._idle.set()
        return True

    def _fail_calls(self, cause: Exception) -> None:
        self.refusal = cause
        if self._timer is not None:
            self._timer.cancel()
        self._stream.transport.abort()
        unanswered = [result for result, *_ in self.calls.values()]
        self.calls.clear()
        for result in unanswered:
            if not result.done():
                result.set_exception(ConnectionLostError(cause, sent=True))
        self._idle.set()
        self._write_resumed.set()

    # Request timeout

    def _start_timer(self) -> None:
        """Start the request timeout of the oldest request, which is the first in order."""
        if self._timer is None and self.calls:
            *_, deadline = next(iter(self.calls.values()))
            self._timer = self._loop.call_at(deadline, self._check_oldest)

    def _check_oldest(self) -> None:
        self._timer = None
        if not self.calls:
            return
        _, command, *_, deadline = next(iter(self.calls.values()))
        if deadline > self._loop.time():
            self._start_timer()
            return
        self._overdue = TimeoutError(
            errno.ETIMEDOUT,
            f"the server did not answer a {Command(command).name} within"
            f" {self._request_timeout:g} s",
        )
        self.refusal = self.refusal or self._overdue  # also until `run` has ended
        self._stream.transport.abort()  # so that it does


def _is_constant(data: bytes | memoryview) -> bool:
    # A view of a receive buffer that can be written is the payload of a request to a device, which
    # may change it.
    return (
        isinstance(data, bytes)
        or isinstance(data.obj, bytes)
        or (data.readonly and isinstance(data.obj, PooledBuffer))
    )
