"""Time slices for fairness: how long one connection may occupy the event loop, and which is next.

A network client may send far more cheap requests than can be served before other clients time out.
Invariants:

* Round-robin: a connection that has used up its slice waits until all that used up theirs before
  have had another one. One of them resumes in each turn of the event loop.
* A connection with little to do never waits for that: its requests are served as they arrive, in
  the same turn of the loop. Many flooding connections delay it no more than one does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from weakref import WeakKeyDictionary

SLICE = 2_000_000
"""Nanoseconds of one slice. Another turn of the event loop costs up to a hundredth of that."""


class RoundRobin:
    """The queue of connections of one event loop that wait for their next slice."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()
        self._served = 0

    def progress_of(self, resume: Callable[[], object]) -> int | None:
        """Return how many slices have been granted, if ``resume`` waits for one; None otherwise."""
        return self._served if resume in self._waiting else None

    def enqueue(self, resume: Callable[[], object]) -> None:
        """Queue ``resume``, to be called in a later turn of the loop, after those that wait."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
        self._waiting.append(resume)

    def _next(self) -> None:
        self._served += 1
        resume = self._waiting.popleft()
        if self._waiting:  # scheduled first, since resume() may raise
            asyncio.get_running_loop().call_soon(self._next)
        resume()


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, RoundRobin] = WeakKeyDictionary()


def _round_robin() -> RoundRobin:
    """Return the queue of the running loop, which all its connections share."""
    loop = asyncio.get_running_loop()
    if (found := _by_loop.get(loop)) is None:
        found = _by_loop[loop] = RoundRobin()
    return found


class Slice:
    """The time slice of one connection.

    In transmission phase :class:`.Pacer` keeps the end itself, and only waits by this.

    Attributes:
        end: when it ends, in nanoseconds of :func:`time.monotonic_ns`.

    """

    __slots__ = ("_others", "_seen", "end")

    def __init__(self) -> None:
        self._others = _round_robin()
        self._seen: int | None = None
        self.end = 0

    def begin(self, now: int) -> None:
        """Begin another one, at ``now`` of :func:`time.monotonic_ns`."""
        self.end = now + SLICE

    def is_over(self) -> bool:
        """Read the clock, and return whether the slice has ended."""
        return monotonic_ns() >= self.end

    def enqueue(self, resume: Callable[[], object]) -> None:
        """Queue ``resume``, to be called when the next slice may begin."""
        self._others.enqueue(resume)

    def is_coming(self, resume: Callable[[], object]) -> bool:
        """Whether ``resume`` is queued, and others have had slices since this was called last.

        If not, a KeyboardInterrupt may have hit the callback that was to resume it.
        """
        before, self._seen = self._seen, self._others.progress_of(resume)
        return self._seen not in (None, before)

    async def next(self) -> None:
        """Wait until the next slice may begin, and begin it.  Cancellation: safe."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._others.enqueue(partial(_set_once, granted))
        await granted
        self.begin(monotonic_ns())


def _set_once(event: asyncio.Future[None]) -> None:
    if not event.done():  # the waiter may have been cancelled
        event.set_result(None)
