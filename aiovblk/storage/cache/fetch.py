"""The reads of the inner device that are under way.

What is being changed while it is read is spoilt: what was read may be older than the change, though
it arrives later. Whoever asked before the change began may have it; it is never kept, and nobody
who asks later gets it.
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
"""Bytes of one read: where throughput hardly grows any more, and what comes first is not late."""


class Fetch:
    """One read of some lines that follow one another.

    Attributes:
        numbers: of the lines.
        begin, end: bytes of the device; the last line may be shorter than the others.
        ahead: whether nobody had asked for it when it began.
        invalid: what was, or is being, changed since it began, in bytes.
        arrived: set to what was read.
        waiters: how many wait for it.
        task: what reads, and then keeps what was read.

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
        """What was read between these bytes of the device."""
        return self.arrived.result()[begin - self.begin : end - self.begin]


class Fetches:
    """All fetches of one device: each line is read once for all who want it at the same time.

    Args:
        inner: what is read.
        lines: what tells blocks from bytes.
        changes: the changes that are under way.
        keep: called with each fetch that has arrived; must not raise.
        stats: where bytes are counted.

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
        self._under_way: set[Fetch] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def lines_ahead(self) -> int:
        """How many lines are under way that nobody waits for."""
        return sum(len(fetch.numbers) for fetch in self._under_way if fetch.ahead)

    def __contains__(self, number: int) -> bool:
        """Whether this line is being fetched."""
        return number in self._by_number

    def joinable(self, number: int, blocks: int) -> Fetch | None:
        """The fetch that brings these blocks of a line, if there is one and it may be used."""
        fetch = self._by_number.get(number)
        return fetch if fetch and not blocks & self.is_invalid(fetch, number) else None

    def is_invalid(self, fetch: Fetch, number: int) -> int:
        """The blocks of this line for which ``fetch`` cannot be used."""
        blocks = 0
        for begin, end in fetch.invalid:
            blocks |= self._lines.blocks(number, begin, end)
        return blocks

    def invalidate(self, begin: int, end: int) -> None:
        """Take note that the bytes between are about to change."""
        for fetch in self._under_way:
            if fetch.begin < end and begin < fetch.end:
                fetch.invalid.append((begin, end))

    def start(self, numbers: Iterable[int], *, ahead: bool = False) -> dict[int, Fetch]:
        """Fetch these lines, in ascending order; returns which fetch brings which."""
        started: dict[int, Fetch] = {}
        for span in spans(numbers, max(_MAX_FETCH // self._lines.line_size, 1)):
            fetch = self._start(span, ahead)
            started |= dict.fromkeys(span, fetch)
        return started

    async def wait(self, fetches: set[Fetch]) -> None:
        """Wait until all have arrived or failed; those for whom nobody waits any more are ended."""
        for fetch in fetches:
            fetch.waiters += 1
        try:
            await asyncio.wait([fetch.arrived for fetch in fetches])
        finally:
            for fetch in fetches:
                fetch.waiters -= 1
                if not fetch.waiters and not fetch.arrived.done():
                    # It may hang for good, and should not do so for those who ask again.
                    fetch.task.cancel()
                    self._finish(fetch)

    async def close(self) -> None:
        """End those that have not arrived, and wait until the others are kept."""
        for fetch in list(self._under_way):
            if not fetch.arrived.done():
                fetch.task.cancel()
                self._finish(fetch)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, numbers: range, ahead: bool) -> Fetch:
        begin = numbers.start * self._lines.line_size
        end = min(numbers.stop * self._lines.line_size, self._inner.size)
        fetch = Fetch(numbers, begin, end, ahead=ahead)
        fetch.invalid += self._changes.held(begin, end)
        self._under_way.add(fetch)
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
            if fetch in self._under_way:  # or it was ended, and nobody tells it what is spoilt
                fetch.arrived.set_result(data)
                await self._keep(fetch)
        except STOP_EXCEPTIONS:
            raise
        except BaseException as exc:  # those who wait for it are told, whatever it is
            self._finish(fetch, exc)
        finally:
            self._finish(fetch)

    async def _read(self, begin: int, length: int) -> memoryview:
        data = memoryview(await self._inner.read(begin, length)).cast("B")
        if len(data) != length:
            raise ValueError(f"read returned {len(data)} bytes where {length} were asked for")
        self._stats.fetched_bytes += length
        # What can be written to may change as soon as the inner device runs again.
        return data if data.readonly else memoryview(bytes(data))

    def _finish(self, fetch: Fetch, exc: BaseException | None = None) -> None:
        """Let nobody join it any more. May be called again."""
        self._under_way.discard(fetch)
        for number in fetch.numbers:
            if self._by_number.get(number) is fetch:
                del self._by_number[number]
        if not fetch.arrived.done():
            fetch.arrived.set_exception(exc or OSError(errno.EIO, "the fetch was cancelled"))
        fetch.arrived.exception()  # looked at here, or asyncio complains that nobody did
