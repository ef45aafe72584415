"""Serve the requests of a ublk device from their tags to their results, in one frame.

What :mod:`aiovblk.dispatch.serving` is for a connection, and by its rules: each handler runs in a
task, one that waits has its task to itself, the others follow each other in one task. A READ or
WRITE that is in order and has no flags has no :class:`Request`, unless its handler waits or fails.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import cast

from ...dispatch.handler_call import Buffer, HandlerAdapter, view_of
from ...dispatch.outcomes import Outcome
from ...dispatch.pacing import SMALL
from ...dispatch.receiver import RequestReceiver
from ...dispatch.serving import QUEUED, RequestServer
from ...dispatch.slow_requests import as_request
from ...protocol import Command, Payload, ReplyContent, Request
from ...stream import ReceiveBuffer
from ...ublk import DESCRIPTOR_WORDS, Queue
from .replies import TagReplySender

# Plain ints: an IntEnum's comparison costs as much as the rest.
_READ, _WRITE = int(Command.READ), int(Command.WRITE)


class TagReader(ReceiveBuffer):
    """The tags of requests that have come, in the place of received bytes.

    Attributes:
        tags: those from index ``start`` on wait to be served; ``end`` is behind the last.

    """

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[int] = []
        self.consuming = True

    def add(self, tags: list[int]) -> None:
        """Add tags that have come."""
        self.tags = tags if self.start == self.end else [*self.tags[self.start :], *tags]
        self.start, self.end = 0, len(self.tags)


class TagHandlerAdapter(HandlerAdapter):
    """Calls handlers with the payload of a WRITE, which it gets from the queue.

    Attributes:
        queue: of the device; set before the first request.

    """

    queue: Queue

    async def _call(self, request: Request, payload: memoryview | None) -> ReplyContent:
        if request.type == _WRITE:
            payload = self.queue.payload(request.cookie, request.length)
        return await super()._call(request, payload)

    def checked(self, data: Buffer, length: int) -> Payload:
        """Check the result of a READ; the kernel copies it before anything else runs.

        Raises:
            TypeError, ValueError: it is not bytes-like, or not ``length`` bytes.

        """
        view = view_of(data)
        if len(view) != length:
            raise ValueError(f"read returned {len(view)} bytes where {length} were asked for")
        return view


class TagReceiver(RequestReceiver):
    """Makes requests of the tags that are not served directly.

    Attributes:
        source: of the descriptors; set before the first request.

    """

    source: Queue

    def accept(self) -> bool:
        """Accept the next request: queue it, or refuse it; False if there is none."""
        reader = cast(TagReader, self.reader)
        if reader.start == reader.end:
            return False
        tag = reader.tags[reader.start]
        reader.start += 1
        request = self.request(tag)
        self._sender.stats.in_flight += 1
        if error := self._validator.error_for(request):
            self._sender.reply(request, error)
        else:
            self.queue.append((request, None))
        return True

    def close(self) -> None:
        """Queue what has come and is not accepted: its tags are owed results even so."""
        while self.accept():
            pass

    def request(self, tag: int) -> Request:
        """Make the request of a tag."""
        flags, command, offset, length = self.source.request(tag)
        return Request(flags, command, tag, offset, length, self._sender.arrival)


class TagServer(RequestServer):
    """Serve the requests of one device, one after another, until a handler has to wait."""

    _receiver: TagReceiver
    _sender: TagReplySender

    def attach(self) -> None:
        """Prepare to serve; the receiver has been attached to its reader."""
        source = self._receiver.source
        self._tag_parts = (
            cast(TagReader, self._receiver.reader),
            self._receiver.queue,
            source,
            source.descriptors,
            self._pacer,
            self._limiter,
            self._adapter.read,
            self._adapter.write,
            self._sender.read_lengths,
            self._sender.write_lengths,
            self._validator.block_mask,
            int(_READ if self._validator.read_only else _WRITE),
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
        parts = self._tag_parts
        reader, queue, source, descriptors, pacer, limiter, read, write, *others = parts
        reads, writes, mask, last_direct, unchanged = others
        size, credit, arrival = self._validator.size, pacer.credit, self._sender.arrival
        request: Request | None = None
        failure: BaseException | None = None
        content: ReplyContent = b""
        while True:
            if credit <= 0:
                if not self.renew_credit():
                    break
                credit = pacer.credit
            if queue:
                request, _ = queue.popleft()
                self._current, command, length = request, QUEUED, request.length
                # How long another command takes cannot be estimated: look at the clock.
                pacer.credit = credit = credit - length - SMALL if request.type <= _WRITE else 0
            elif reader.start < reader.end:
                tag = reader.tags[reader.start]
                # Inlined: source.request(tag). READ and WRITE have the numbers that they have in
                # NBD; a flag makes the lower word larger.
                word = descriptors[DESCRIPTOR_WORDS * tag]
                command, length = word & 0xFFFFFFFF, word >> 32 << 9
                offset = descriptors[DESCRIPTOR_WORDS * tag + 1] << 9
                if (
                    command > last_direct
                    or not length
                    or (offset | length) & mask
                    or offset + length > size
                ):
                    self.accept_next()
                    credit = pacer.credit
                    continue
                reader.start += 1
                self._current = tag
                pacer.credit = credit = credit - length - SMALL
            else:
                break
            try:
                if command == _READ:
                    data = await read(offset, length)
                    if type(data) is not bytes or len(data) != length:
                        data = self._checked(data, length)
                    # Else the tag, and its buffer, may be another request's by now.
                    if not self.answered or task not in self.answered:
                        source.place(tag, data)
                elif command == _WRITE:
                    await write(offset, source.payload(tag, length))
                else:
                    assert request is not None  # it comes from the queue
                    content = await self._handle(request, None)
            except BaseException as exc:
                failure = exc
            data = b""  # it is not kept while another handler waits
            if failure is None and command != QUEUED:
                if self.leader is not task:
                    self._running.tasks.pop(task, None)
                    if not self._was_answered(task):
                        source.complete(tag, length)
                        self._sender.add_waited(command, length, arrival)
                    break
                source.complete(tag, length)
                if command == _READ:
                    reads.append(length)
                else:
                    writes.append(length)
            else:
                if command != QUEUED:
                    request = self._request_of(task, tag, arrival)
                assert request is not None
                interrupt = await self._reply(task, request, None, content, failure)
                content, failure = b"", None
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
            if limiter.waiting:  # other devices of the same limiter come first
                limiter.release()
                if not limiter.acquire(self._waiter):
                    return
        limiter.release()

    def _send_reply(self, task: asyncio.Task[None], request: Request, outcome: Outcome) -> None:
        if not self._was_answered(task):
            super()._send_reply(task, request, outcome)

    def _was_answered(self, task: asyncio.Task[None]) -> bool:
        """Return whether a request was answered before its handler ended; then forget that."""
        return self.answered.pop(task, None) is not None

    def leave_to_handler(self, task: asyncio.Task[None]) -> None:
        """Leave a task to its handler, which waits; another task may become the leader."""
        self.leader = None
        current = self._current
        if isinstance(current, int):
            current = self._receiver.request(current)
            self._sender.stats.in_flight += 1
        self._running.add(task, current)

    def _request_of(self, task: asyncio.Task[None], position: int, arrival: int) -> Request:
        """Make the request of a tag that was served directly, since its handler has raised."""
        if (waiting := self._running.tasks.get(task)) is not None:
            return as_request(waiting[1])
        if (answered := self.answered.get(task)) is not None:
            return answered  # the tag's descriptor may be another request's by now
        request = self._receiver.request(position)
        self._sender.stats.in_flight += 1
        self._current = request
        return request
