"""Run requests on one open device as a dispatcher does, and check the result of each."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ..device import BlockDevice
from ..errors import STOP_EXCEPTIONS
from .generator import GeneratedRequest
from .model import Content, Model
from .patterns import SCRIBBLE_BYTE, stamped
from .results import CheckFailed, checked_extents, checked_view

T = TypeVar("T")

UNASKED = "raised CancelledError without being cancelled"

Check = Callable[[], None]
"""What remains to be checked once a reply has been sent."""


class _Failed(Exception):  # noqa: N818 (it never leaves this file)
    """The request has failed, which is allowed."""


class _Over(Exception):  # noqa: N818 (nor does this)
    """The device has crashed; the result of the request does not count."""


class OutcomeCounts:
    """Counts of succeeded and failed requests by command, over all openings of the disk."""

    def __init__(self) -> None:
        self.succeeded: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.errors: dict[str, OSError] = {}
        """The last error of each command."""


class RequestRunner:
    """Runs requests on a device, and compares the results with a model.

    Args:
        device: its handlers are called.
        model: what the device should hold.
        outcomes: counts the results.
        name: of the round, for messages.

    Attributes:
        over: whether the device is dead; results do not count any more.
        finished: number of requests that are finished.

    """

    def __init__(
        self, device: BlockDevice, model: Model, outcomes: OutcomeCounts, name: str
    ) -> None:
        self._device = device
        self._model = model
        self._outcomes = outcomes
        self._name = name
        self._running: dict[asyncio.Task[Check | None], GeneratedRequest] = {}
        self.over = False
        self.finished = 0
        self._when_finished: dict[int, asyncio.Future[None]] = {}
        self._handlers: dict[str, Callable[[GeneratedRequest], Awaitable[Check | None]]] = {
            "read": self._read,
            "write": self._write,
            "write_zeroes": self._write_zeroes,
            "trim": self._trim,
            "flush": self._flush,
            "extents": self._extents,
            "cache": self._cache,
        }

    async def run_chain(self, chain: Sequence[GeneratedRequest]) -> None:
        """Run requests in sequence.

        Raises:
            CheckFailed: a result was wrong.

        """
        for request in chain:
            await loop_turns(request.pause)
            if self.over:
                return
            try:
                await self._make(request)
            except CheckFailed as exc:
                exc.request = exc.request or str(request)
                raise
            self._count()

    async def wait_finished(self, finished: int) -> None:
        """Wait until this many requests are finished."""
        if self.finished < finished:
            reached = asyncio.get_running_loop().create_future()
            self._when_finished[finished] = reached
            await reached

    @property
    def unfinished(self) -> str:
        """The requests in flight, as text."""
        requests = [str(each) for task, each in self._running.items() if not task.done()]
        return " and ".join(requests) or "nothing"

    async def stop(self, timeout: float) -> None:
        """Cancel the running handlers, and wait until they have ended.

        Args:
            timeout: seconds for that.

        Raises:
            CheckFailed: they have not ended in time.

        """
        self.over = True
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        if tasks and (await asyncio.wait(tasks, timeout=timeout))[1]:
            raise CheckFailed(f"{self.unfinished} still runs {timeout} s after it was cancelled")

    def _count(self) -> None:
        self.finished += 1
        reached = self._when_finished.pop(self.finished, None)
        if reached is not None and not reached.done():
            reached.set_result(None)

    async def _make(self, request: GeneratedRequest) -> None:
        task = _start(self._serve(request))
        self._running[task] = request
        task.add_done_callback(self._forget)
        if request.cancel is not None:
            await loop_turns(request.cancel)
            task.cancel()
        await asyncio.wait([task])
        # A task that is cancelled before its first step never makes its request.
        check = None if task.cancelled() else task.result()
        if check is not None:
            await loop_turns(request.hold)
            if not self.over:
                check()

    def _forget(self, task: asyncio.Task[Check | None]) -> None:
        del self._running[task]
        if not task.cancelled():
            task.exception()  # retrieved even if run_chain() was cancelled

    async def _serve(self, request: GeneratedRequest) -> Check | None:
        try:
            return await self._handlers[request.command](request)
        except _Over:
            return None

    # The commands

    async def _read(self, request: GeneratedRequest) -> Check | None:
        began, length = self._model.now(), request.length
        try:
            data = await self._check_outcome(
                request, lambda: self._device.read(request.offset, length)
            )
        except _Failed:
            return None
        view = checked_view(data, length)
        if not view.readonly:  # it is copied at once
            view = memoryview(bytes(view))
        return lambda: self._model.check_read(began, request.blocks.start, bytes(view))

    async def _write(self, request: GeneratedRequest) -> None:
        number, size = self._model.next_number, request.block_size

        def content(block: int) -> bytes:
            return stamped(number, block, size)

        buffer = bytearray().join(map(content, request.blocks))
        data = memoryview(buffer)
        succeeded = False
        try:
            succeeded = await self._change(
                request, content, lambda: self._device.write(request.offset, data)
            )
        finally:
            _take_back(buffer, data, keep_exported=not succeeded)

    async def _write_zeroes(self, request: GeneratedRequest) -> None:
        zeroes = bytes(request.block_size)
        await self._change(
            request,
            lambda block: zeroes,
            lambda: self._device.write_zeroes(
                request.offset, request.length, may_trim=request.may_trim
            ),
        )

    async def _trim(self, request: GeneratedRequest) -> None:
        await self._change(
            request,
            lambda block: None,
            lambda: self._device.trim(request.offset, request.length),
        )

    async def _flush(self, request: GeneratedRequest) -> None:
        began = self._model.now()
        with contextlib.suppress(_Failed):
            await self._check_outcome(request, self._device.flush)
            self._model.flush(began)

    async def _extents(self, request: GeneratedRequest) -> None:
        began, block = self._model.now(), request.blocks.start
        try:
            found = await self._check_outcome(
                request, lambda: self._device.extents(request.offset, request.length)
            )
        except _Failed:
            return
        for extent in checked_extents(found, request.block_size):
            end = min(block + extent.length // request.block_size, request.blocks.stop)
            if extent.zero:
                self._model.check_zeroes(began, range(block, end))
            block = end

    async def _cache(self, request: GeneratedRequest) -> None:
        with contextlib.suppress(_Failed):
            await self._check_outcome(
                request, lambda: self._device.cache(request.offset, request.length)
            )

    # Common to all commands

    async def _change(
        self, request: GeneratedRequest, content: Content, call: Callable[[], Awaitable[object]]
    ) -> bool:
        """Call a handler that changes blocks; return whether it succeeded."""
        what = f"{self._name}'s {request}"
        change = self._model.begin(request.blocks, content, what)
        try:
            await self._check_outcome(request, call)
            succeeded = True
        except _Failed:
            succeeded = False
        self._model.end(change, succeeded=succeeded)
        return succeeded

    async def _check_outcome(
        self, request: GeneratedRequest, call: Callable[[], Awaitable[T]]
    ) -> T:
        """Call a handler; call it again if it was cancelled and is to be rerun."""
        while True:
            try:
                result = await call()
            except asyncio.CancelledError:
                self._take_cancellation(request)
            except OSError as exc:
                self._unless_over()
                self._outcomes.failed[request.command] += 1
                self._outcomes.errors[request.command] = exc
                raise _Failed from exc
            except STOP_EXCEPTIONS:
                raise
            except BaseException as exc:
                self._unless_over()
                raise CheckFailed(f"raised {exc!r}, which is no OSError") from exc
            else:
                self._unless_over()
                self._outcomes.succeeded[request.command] += 1
                return result

    def _take_cancellation(self, request: GeneratedRequest) -> None:
        self._unless_over()
        task = asyncio.current_task()
        assert task is not None  # each request has a task of its own
        if not task.cancelling():
            raise CheckFailed(UNASKED) from None
        while task.uncancel():
            pass
        if not request.again:
            raise _Failed from None

    def _unless_over(self) -> None:
        if self.over:
            raise _Over from None


def _take_back(buffer: bytearray, data: memoryview, *, keep_exported: bool) -> None:
    """Overwrite the payload of a write, as the next request in the same memory would.

    Args:
        buffer: the memory.
        data: what the handler was given.
        keep_exported: whether to leave the memory alone while a view of it exists, as a dispatcher
            does: a write that is cancelled may leave a thread running that still reads it.

    """
    with contextlib.suppress(BufferError):
        data.release()
    if keep_exported and _is_exported(buffer):
        return
    buffer[:] = bytes([SCRIBBLE_BYTE]) * len(buffer)


def _is_exported(buffer: bytearray) -> bool:
    try:
        buffer.append(0)
    except BufferError:
        return True
    del buffer[-1]
    return False


if sys.version_info >= (3, 12):

    def _start(serving: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return asyncio.Task(serving, loop=asyncio.get_running_loop(), eager_start=True)

else:

    def _start(serving: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return asyncio.get_running_loop().create_task(serving)


async def loop_turns(count: int) -> None:
    """Wait for this many turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)
