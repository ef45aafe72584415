"""Rate limiting: token buckets, and a queue before them that is first in, first out.

A bucket gains ``rate`` tokens per second, up to its capacity; each caller takes as many as it
costs. One that costs more than the capacity could never be let through: it waits for a full bucket
instead, and leaves it with a debt, which those behind it wait for. So the rate holds in the long
run whatever the sizes are, and the capacity bounds what passes at once after a pause.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

GRANULARITY = 0.001
"""Seconds: who would wait no longer than this is let through, and the debt grows by as much. The
timers of event loops are no finer (uvloop's count milliseconds), and a timer that comes too early
would be set again, with nothing between."""


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """Do without it."""


class Clock:
    """Time, and timers on the running loop. A test has a clock of its own."""

    def time(self) -> float:
        """Return seconds of a clock that never goes back."""
        return time.monotonic()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call in ``delay`` seconds."""
        return asyncio.get_running_loop().call_later(delay, callback)


class TokenBucket:
    """Count the tokens of one bucket, which is full at first.

    Args:
        rate: tokens per second, more than 0.
        capacity: most tokens that a pause can save; 0 for none.
        now: seconds of the clock that all other calls are given, too.

    """

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self._tokens = capacity
        self._counted = now

    def delay(self, cost: float, now: float) -> float:
        """Return the seconds until so many tokens may be taken; 0 for now."""
        self._count(now)
        missing = min(cost, self.capacity) - self._tokens
        return max(missing / self.rate, 0.0)

    def take(self, cost: float) -> None:
        """Take tokens, or give them back with a negative cost."""
        self._tokens = min(self._tokens - cost, self.capacity)

    def change(self, rate: float, capacity: float, now: float) -> None:
        """Change the rate and the capacity from now on.

        A debt stays, in tokens or in seconds, whichever is paid sooner: one that was made at a high
        rate must not stop everything for hours at a low one, nor the reverse.
        """
        self._count(now)
        if self._tokens < 0:
            self._tokens = max(self._tokens, self._tokens * rate / self.rate)
        self.rate, self.capacity = rate, capacity
        self._tokens = min(self._tokens, capacity)

    def _count(self, now: float) -> None:
        self._tokens = min(self._tokens + self.rate * (now - self._counted), self.capacity)
        self._counted = now


class RateLimiter:
    """Let callers pass in the order in which they came, as several token buckets together allow.

    A caller that need not wait passes without a turn of the loop. There is one timer, for the first
    in the queue.

    Concurrency: any number of callers, on one event loop, from whose thread limits are changed.

    Args:
        clock: the time, and what sets timers.

    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._buckets: Sequence[TokenBucket | None] = ()
        self._queue: deque[tuple[asyncio.Future[None], Sequence[float]]] = deque()
        self._timer: Timer | None = None

    def set_limits(self, limits: Sequence[tuple[float, float] | None]) -> None:
        """Set or change the limits; those who wait are let through as the new ones allow.

        Args:
            limits: for each kind of cost the rate and the capacity of its bucket; None for no
                limit. Always the same number of kinds.

        """
        before = self._buckets or [None] * len(limits)
        self._buckets = [
            self._changed(bucket, limit) for bucket, limit in zip(before, limits, strict=True)
        ]
        self._let_through()

    def _changed(
        self, bucket: TokenBucket | None, limit: tuple[float, float] | None
    ) -> TokenBucket | None:
        if limit is None:
            return None
        if bucket is None:
            return TokenBucket(*limit, self._clock.time())
        bucket.change(*limit, self._clock.time())
        return bucket

    async def acquire(self, costs: Sequence[float]) -> None:
        """Wait until all buckets allow it, and take so many tokens of each.

        Args:
            costs: one for each of the limits.

        Cancellation: nothing is taken, and those behind move up.

        """
        if not self._queue and self._delay(costs) <= GRANULARITY:
            self._take(costs)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (waiter, costs)
        self._queue.append(entry)
        if len(self._queue) == 1:
            self._let_through()
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # let through, and cancelled before it could go on
                self.give_back(costs)
            else:
                with suppress(ValueError):  # it was found cancelled, and taken out
                    self._queue.remove(entry)
                self._let_through()
            raise

    def give_back(self, costs: Sequence[float]) -> None:
        """Give back what was acquired, and is not needed."""
        self._take([-cost for cost in costs])
        self._let_through()

    def _let_through(self) -> None:
        """Let those through who may pass now, and set the timer for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            waiter, costs = self._queue[0]
            if not waiter.done():
                if (delay := self._delay(costs)) > GRANULARITY:
                    self._timer = self._clock.call_later(delay, self._let_through)
                    return
                self._take(costs)
                waiter.set_result(None)
            self._queue.popleft()

    def _delay(self, costs: Sequence[float]) -> float:
        """Return the seconds until all buckets allow it."""
        now = self._clock.time()
        delays = [bucket.delay(cost, now) for bucket, cost in self._charged(costs)]
        return max(delays, default=0.0)

    def _take(self, costs: Sequence[float]) -> None:
        for bucket, cost in self._charged(costs):
            bucket.take(cost)

    def _charged(self, costs: Sequence[float]) -> list[tuple[TokenBucket, float]]:
        pairs = zip(self._buckets, costs, strict=True)
        return [(bucket, cost) for bucket, cost in pairs if bucket is not None and cost]
