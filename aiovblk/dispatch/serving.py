"""Serve requests from the receive buffer to the reply, in one frame.

What holds here:

* Each handler runs in a task: the current task, timeouts and context variables are what they are
  anywhere else in asyncio.
* A handler that waits has its task to itself until it ends. Handlers that never wait follow each
  other in one task, the leader.
* A READ or WRITE that is in order, and has no flags, is served directly: there is no
  :class:`Request` for it, unless its handler fails, or waits for so long that it is reported.
* Exactly one reply for each request, whatever its handler does.
"""

from __future__ import annotations

import asyncio
from contextvars import Context, copy_context
from typing import Final

from ..protocol import (
    DIRECT_REQUEST,
    MAX_PAYLOAD,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    Command,
    ReplyContent,
    ReplyMode,
    Request,
    parse_request,
    structured_read_header,
    structured_success,
)
from .concurrency import ConcurrencyLimiter, Waiter
from .handler_call import HandlerAdapter
from .memory_budget import REQUEST_COST, ConnectionQuota
from .outcomes import Outcome, OutcomeResolver
from .pacing import SMALL, Pacer
from .receiver import RequestReceiver
from .reply_sender import ReplySender
from .slow_requests import SlowRequestMonitor, as_request
from .validation import RequestValidator

# Plain ints: an IntEnum's comparison costs as much as the rest.
_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)

QUEUED: Final = -1
"""In place of the command of a request that is not served directly, but comes from the queue."""

_HEADER: Final = DIRECT_REQUEST.size
_unpack = DIRECT_REQUEST.unpack_from
_pack = SIMPLE_REPLY.pack


class RequestServer:
    """Serve the requests of one connection, one after another, until a handler has to wait.

    Args:
        receiver: what has been received, and the queue of what is accepted.
        sender: takes the replies.
        adapter: calls the handlers.
        validator: decides which requests are in order.
        pacer: decides how much may be served now.
        limiter: how many handlers may run at once.
        waiter: who waits for the limiter.
        outcomes: decides what becomes of requests whose handlers raise.
        running: the handlers that have had to wait.
        mode: the form of the replies.
        quota: what requests are charged to while their handlers wait; None for the kernel.

    Attributes:
        context: the context of the connection: a handler's is a copy of it.
        leader: the task that serves, as long as its handlers have not had to wait.
        answered: by task, the requests that were answered before their handlers ended, which only a
            :class:`~aiovblk.mounting.ublk.serving.TagServer` allows.

    """

    def __init__(
        self,
        receiver: RequestReceiver,
        sender: ReplySender,
        adapter: HandlerAdapter,
        validator: RequestValidator,
        *,
        pacer: Pacer,
        limiter: ConcurrencyLimiter,
        waiter: Waiter,
        outcomes: OutcomeResolver,
        running: SlowRequestMonitor,
        mode: ReplyMode,
        quota: ConnectionQuota | None,
    ) -> None:
        self.context = copy_context()
        self.leader: asyncio.Task[None] | None = None
        self.answered: dict[asyncio.Task[None], Request] = {}
        self._current: Request | int = 0  # what it serves: a request, or where its header is
        self._receiver = receiver
        self._sender = sender
        self._validator = validator
        self._pacer = pacer
        self._limiter = limiter
        self._waiter = waiter
        self._outcomes = outcomes
        self._running = running
        self._quota = quota
        self._structured = mode is ReplyMode.STRUCTURED
        self._adapter = adapter
        self._handle, self._checked = adapter.handle, adapter.checked
        # Bytes of the largest READ and WRITE that is served directly.
        self._max_read = self._max_write = 0
        if mode is not ReplyMode.EXTENDED:
            self._max_read = adapter.max_read
            self._max_write = 0 if validator.read_only else MAX_PAYLOAD

    def attach(self) -> None:
        """Prepare to serve; the receiver has been attached to its reader."""
        self._parts = (
            self._receiver.reader,
            self._receiver.queue,
            self._sender,
            self._sender.buffers,
            self._pacer,
            self._limiter,
            self._adapter.read,
            self._adapter.write,
            self._validator.block_mask,
            self.context,
        )

    async def serve(self, context: Context) -> None:
        """Serve requests one after another in ``context``, until a handler has had to wait.

        The caller has acquired the limiter for it; it is released at the end. One function of more
        than 50 lines: for a handler that never waits this loop is the whole request, and each call
        of a helper would cost some percent of it.
        """
        task = asyncio.current_task()
        assert task is not None  # this is one
        self.leader = task
        # One attribute: this is done for each batch, and for each handler that waits.
        reader, queue, sender, buffers, pacer, limiter, read, write, mask, unchanged = self._parts
        size, credit, arrival = self._validator.size, pacer.credit, sender.arrival
        request: Request | None = None
        payload: memoryview | None = None
        content: ReplyContent = b""
        failure: BaseException | None = None
        end = reader.end if reader.consuming else 0
        while True:
            if credit <= 0:
                if not self.renew_credit():
                    break
                credit = pacer.credit
            if queue:
                request, payload = queue.popleft()
                self._current, command, length = request, QUEUED, request.length
                # How long another command takes cannot be estimated: look at the clock.
                pacer.credit = credit = credit - length - SMALL if request.type <= _WRITE else 0
            else:
                at = reader.start
                if end - at < _HEADER:
                    break
                magic, command, cookie, offset, length = _unpack(reader.buffer, at)
                after = at + _HEADER
                if command == _READ:
                    in_order = length <= self._max_read
                elif command == _WRITE:
                    after += length
                    in_order = length <= self._max_write and after <= end
                else:
                    in_order = False
                if (
                    in_order
                    and length
                    and not (offset | length) & mask
                    and offset + length <= size
                    and magic == REQUEST_MAGIC
                ):
                    reader.start = after
                    self._current = at
                    pacer.credit = credit = credit - length - SMALL
                elif self.accept_next():
                    credit = pacer.credit
                    continue
                else:
                    break
            try:
                if command == _READ:
                    data = await read(offset, length)
                    if type(data) is not bytes or len(data) != length:
                        data = self._checked(data, length)
                elif command == _WRITE:
                    reader.wanted = _HEADER
                    payload = reader.view[at + _HEADER : after]
                    await write(offset, payload)
                    try:  # noqa: SIM105 (inlined: release())
                        payload.release()
                    except BufferError:
                        pass
                    payload = None
                else:
                    assert request is not None  # it comes from the queue
                    content = await self._handle(request, payload)
            except BaseException as exc:
                failure = exc
            if failure is None and command != QUEUED:
                if not self._structured:
                    buffers.append(_pack(SIMPLE_REPLY_MAGIC, 0, cookie))
                elif command == _READ:
                    buffers.append(structured_read_header(cookie, offset, length))
                else:
                    buffers.append(structured_success(cookie))
                if command == _READ:
                    buffers.append(data)
                    data = b""  # it is not kept while another handler waits
                if self.leader is not task:
                    self._running.tasks.pop(task, None)
                    sender.add_waited(command, length, arrival)
                    break
                if command == _READ:
                    sender.read_lengths.append(length)
                else:
                    sender.write_lengths.append(length)
            else:
                if command != QUEUED:
                    request = self._request_of(task, at, arrival)
                assert request is not None
                interrupt = await self._reply(task, request, payload, content, failure)
                data, payload, content, failure = b"", None, b"", None
                if interrupt is not None:
                    limiter.release()
                    raise interrupt
                if self.leader is not task:
                    break
            try:
                if context != unchanged:
                    break  # the next handler must not see the changes
            except Exception:  # comparing the values of variables may raise anything
                break
            if limiter.waiting:  # other connections come first
                limiter.release()
                if not limiter.acquire(self._waiter):
                    return
        # Inlined: limiter.release().
        if limiter.waiting:
            limiter.release()
        else:
            limiter.running -= 1

    async def _reply(
        self,
        task: asyncio.Task[None],
        request: Request,
        payload: memoryview | None,
        content: ReplyContent,
        failure: BaseException | None,
    ) -> BaseException | None:
        """Reply to a request that was not served directly, or whose handler has raised.

        Returns:
            A KeyboardInterrupt or SystemExit, to be raised.

        """
        outcome = Outcome(0, content, "", None)
        if failure is not None:
            outcome = await self._outcomes.resolve(task, request, payload, failure)
        if self.leader is not task:
            self._running.tasks.pop(task, None)
        if payload is not None:
            release(payload)
        self._send_reply(task, request, outcome)
        return outcome.interrupt

    def _send_reply(self, task: asyncio.Task[None], request: Request, outcome: Outcome) -> None:
        """Send the reply to a request whose handler, in this task, has ended."""
        self._sender.reply(request, outcome.error, outcome.content, outcome.reason)

    def leave_to_handler(self, task: asyncio.Task[None]) -> None:
        """Leave a task to its handler, which waits; another task may become the leader."""
        self.leader = None
        current = self._current
        if not isinstance(current, int):
            self._running.add(task, current)
            return
        header = self._receiver.reader.buffer[current : current + _HEADER]
        self._running.add(task, (header, self._sender.arrival))
        self._sender.stats.in_flight += 1
        if self._quota is not None:
            self._quota.charge(REQUEST_COST + _unpack(header)[-1])

    def _request_of(self, task: asyncio.Task[None], position: int, arrival: int) -> Request:
        """Make the request that was served directly, since its handler has raised."""
        if (waiting := self._running.tasks.get(task)) is not None:
            return as_request(waiting[1])
        request = parse_request(self._receiver.reader.buffer, position, arrival)
        self._sender.stats.in_flight += 1
        if self._quota is not None:
            self._quota.charge(REQUEST_COST + request.length)
        self._current = request
        return request

    def accept_next(self) -> bool:
        """Accept the next request that cannot be served directly; see the receiver's method."""
        self._pacer.credit -= SMALL
        return self._receiver.accept()

    def renew_credit(self) -> bool:
        """Renew the pacer's credit; return whether another request may be served now."""
        pacer, receiver = self._pacer, self._receiver
        if pacer.renew(self._sender.charge):
            return True
        if pacer.paused:
            return False
        # What is in the queue is charged. Otherwise only a small request may be accepted.
        if not receiver.queue:
            receiver.accept()
        return bool(receiver.queue)


def release(payload: memoryview) -> None:
    """Release a payload, so that a handler which kept it gets an error at its next access."""
    # If another object still exports it (a NumPy array, say), the receive buffer below stays
    # unchanged for as long as that lives.
    try:  # noqa: SIM105 (contextlib.suppress costs ten times as much)
        payload.release()
    except BufferError:
        pass
