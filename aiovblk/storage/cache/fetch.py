"""Fetch lines from the inner device, once for all readers that wait for the same line.

A change that overlaps a fetch in flight invalidates these bytes of it: what the fetch returns may
be older than the change, though it arrives later. Readers that joined before the change began may
still get it. It is never stored in the cache, and no later reader may join for these bytes.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable

from ...aio.rangelock import RangeLock
from ...device import BlockDevice
from ...errors import STOP_EXCEPTIONS
from .lines import CacheStats, Lines, spans

_MAX_FETCH = 1 << 20
"""Bytes of one read: more hardly raises throughput, and delays the reader of the first line."""


class Fetch:
    """One read of consecutive lines from the inner device.

    Attributes:
        numbers: of the lines.
        begin, end: bytes of the device; its last line may be shorter than the others.
        ahead: whether it is read-ahead or a hint, which no reader waited for when it began.
        invalid: begin and end in bytes of each change since it began.
        arrived: a future of the data.
        waiters: the number of readers that wait for it.
        task: reads the data, and then stores it in the cache.

    """

    task: asyncio.Task[None]

    def __init__(self, numbers: range, begin: int, end: int, *, ahead: bool) -> None:
        self.numbers = numbers
        self.begin = begin
        self.end = end
        self.ahead = ahead
        self.invalid: list[tuple[int, int]] = []
        self.arrived: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self.waiters = 0

    def view(self, begin: int, end: int) -> memoryview:
        """Return the data between these bytes of the device. It must have arrived."""
        return self.arrived.result()[begin - self.begin : end - self.begin]


class Fetches:
    """The fetches in flight of one device: readers of the same line share one (coalescing).

    Args:
        inner: the device to read.
        lines: converts bytes to blocks.
        changes: the changes of ``inner`` in progress.
        keep: stores the data of a fetch that has arrived; must not raise.
        stats: counts bytes.

    """

    def __init__(
        self,
        inner: BlockDevice,
        lines: Lines,
        changes: RangeLock,
        keep: Callable[[Fetch], Awaitable[None]],
        stats: CacheStats,
    ) -> None:
        self._inner = inner
        self._lines = lines
        self._changes = changes
        self._keep = keep
        self._stats = stats
        self._by_number: dict[int, Fetch] = {}
        self._in_flight: set[Fetch] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def lines_ahead(self) -> int:
        """The number of lines in flight that were read ahead."""
        return sum(len(fetch.numbers) for fetch in self._in_flight if fetch.ahead)

    def __contains__(self, number: int) -> bool:
        """Whether this line is being fetched."""
        return number in self._by_number

    def joinable(self, number: int, blocks: int) -> Fetch | None:
        """Return the fetch in flight of this line; None if its data of these blocks is invalid."""
        fetch = self._by_number.get(number)
        return fetch if fetch and not blocks & self.invalidated(fetch, number) else None

    def invalidated(self, fetch: Fetch, number: int) -> int:
        """Return the blocks of this line that were changed since the fetch began, as bits."""
        blocks = 0
        for begin, end in fetch.invalid:
            blocks |= self._lines.blocks(number, begin, end)
        return blocks

    def invalidate(self, begin: int, end: int) -> None:
        """Record that these bytes of the device are about to change."""
        for fetch in self._in_flight:
            if fetch.begin < end and begin < fetch.end:
                fetch.invalid.append((begin, end))

    def start(self, numbers: Iterable[int], *, ahead: bool = False) -> dict[int, Fetch]:
        """Start to fetch these lines, consecutive ones in one read.

        Args:
            numbers: of the lines, ascending. None is being fetched, or its fetch is invalid.
            ahead: whether no reader waits for them.

        Returns:
            The fetch of each line, by its number.

        """
        started: dict[int, Fetch] = {}
        for span in spans(numbers, max(_MAX_FETCH // self._lines.line_size, 1)):
            fetch = self._start(span, ahead)
            started |= dict.fromkeys(span, fetch)
        return started

    async def wait(self, fetches: set[Fetch]) -> None:
        """Wait until all have arrived or failed.

        Cancellation: a fetch without any other waiter is cancelled.
        """
        for fetch in fetches:
            fetch.waiters += 1
        try:
            await asyncio.wait([fetch.arrived for fetch in fetches])
        finally:
            for fetch in fetches:
                fetch.waiters -= 1
                if not fetch.waiters and not fetch.arrived.done():
                    # It may hang for good: the next reader must not join it, but start another.
                    fetch.task.cancel()
                    self._finish(fetch)

    async def close(self) -> None:
        """Cancel the fetches that have not arrived, and wait until the others are stored."""
        for fetch in list(self._in_flight):
            if not fetch.arrived.done():
                fetch.task.cancel()
                self._finish(fetch)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, numbers: range, ahead: bool) -> Fetch:
        begin = numbers.start * self._lines.line_size
        end = min(numbers.stop * self._lines.line_size, self._inner.size)
        fetch = Fetch(numbers, begin, end, ahead=ahead)
        fetch.invalid += self._changes.held(begin, end)
        self._in_flight.add(fetch)
        self._by_number |= dict.fromkeys(numbers, fetch)
        if ahead:
            self._stats.read_ahead_bytes += end - begin
        fetch.task = asyncio.create_task(self._run(fetch))
        self._tasks.add(fetch.task)
        fetch.task.add_done_callback(self._tasks.discard)
        return fetch

    async def _run(self, fetch: Fetch) -> None:
        try:
            data = await self._read(fetch.begin, fetch.end - fetch.begin)
            if fetch in self._in_flight:  # else it was cancelled, and misses invalidations since
                fetch.arrived.set_result(data)
                await self._keep(fetch)
        except STOP_EXCEPTIONS:
            raise
        except BaseException as exc:  # of any class: it is raised to the waiting readers
            self._finish(fetch, exc)
        finally:
            self._finish(fetch)

    async def _read(self, begin: int, length: int) -> memoryview:
        data = memoryview(await self._inner.read(begin, length)).cast("B")
        if len(data) != length:
            raise ValueError(f"read returned {len(data)} bytes where {length} were asked for")
        self._stats.fetched_bytes += length
        # A writable buffer may be changed by the inner device as soon as it runs again.
        return data if data.readonly else memoryview(bytes(data))

    def _finish(self, fetch: Fetch, exc: BaseException | None = None) -> None:
        """End a fetch: no reader can join it any more. Idempotent."""
        self._in_flight.discard(fetch)
        for number in fetch.numbers:
            if self._by_number.get(number) is fetch:
                del self._by_number[number]
        if not fetch.arrived.done():
            fetch.arrived.set_exception(exc or OSError(errno.EIO, "the fetch was cancelled"))
        fetch.arrived.exception()  # retrieved here, or asyncio would log that it never was
