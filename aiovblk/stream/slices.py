"""Time slices: how long one connection may keep the event loop, and which is next.

A client from the network may send far more cheap requests than can be served before others lose
patience. What holds here:

* A connection that has used up its slice waits until those that used up theirs before it had
  another one: round-robin, one of them for each turn of the event loop.
* A connection with little to do never waits for that: its requests are served as they arrive, in
  the same turn of the loop. Many flooding connections delay it no more than one does.
* The clock is not read for each request. Reading it takes 50 ns where the kernel's vDSO tells
  the time, and more than a microsecond where it does not (virtual machines).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from weakref import WeakKeyDictionary

SLICE = 2_000_000
"""Nanoseconds. Another turn of the event loop costs up to a hundredth of that."""

CHECK_INTERVAL = 32
"""Small requests between two looks at the clock."""


class RoundRobin:
    """Connections of one event loop that wait for their next slice."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()
        self._served = 0

    def progress_of(self, resume: Callable[[], object]) -> int | None:
        """How many slices there have been, while ``resume`` waits for one; None if it does not."""
        return self._served if resume in self._waiting else None

    def enqueue(self, resume: Callable[[], object]) -> None:
        """Call ``resume`` in a later turn of the loop, after those that wait already."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
        self._waiting.append(resume)

    def _next(self) -> None:
        self._served += 1
        resume = self._waiting.popleft()
        if self._waiting:  # scheduled first: whatever is resumed may raise
            asyncio.get_running_loop().call_soon(self._next)
        resume()


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, RoundRobin] = WeakKeyDictionary()


def _round_robin() -> RoundRobin:
    """That of the running loop, which all its connections share."""
    loop = asyncio.get_running_loop()
    if (found := _of_loops.get(loop)) is None:
        found = _of_loops[loop] = RoundRobin()
    return found


class Slice:
    """The time that one connection has before others have theirs.

    Attributes:
        end: when it is over, in nanoseconds of :func:`time.monotonic_ns`.
        left: how much may be done until :meth:`is_over` has to be asked, in small requests;
            counted down by whoever does it.

    """

    __slots__ = ("_others", "_seen", "end", "left")

    def __init__(self) -> None:
        self._others = _round_robin()
        self._seen: int | None = None
        self.end = 0
        self.left = 0

    def begin(self, now: int) -> None:
        """Begin another slice. Where each request counts, this is written out.

        Args:
            now: the time, of :func:`time.monotonic_ns`.

        """
        self.end = now + SLICE
        self.left = CHECK_INTERVAL

    def is_over(self) -> bool:
        """Look at the clock."""
        self.left = CHECK_INTERVAL
        return monotonic_ns() >= self.end

    def enqueue(self, resume: Callable[[], object]) -> None:
        """Call ``resume`` when the next slice may begin."""
        self._others.enqueue(resume)

    def is_coming(self, resume: Callable[[], object]) -> bool:
        """Whether ``resume`` waits for its slice, and others had theirs since this was asked last.

        Otherwise an interrupt (KeyboardInterrupt) may have hit what was to call it.
        """
        before, self._seen = self._seen, self._others.progress_of(resume)
        return self._seen not in (None, before)

    async def next(self) -> None:
        """Wait until the next slice may begin, and begin it.  Cancellation: safe."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._others.enqueue(partial(_set_once, turn))
        await turn
        self.begin(monotonic_ns())


def _set_once(event: asyncio.Future[None]) -> None:
    if not event.done():  # whoever waited may have been cancelled
        event.set_result(None)
