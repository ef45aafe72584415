"""Limit the bytes and the requests per second that reach a device."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ..aio.ratelimit import Clock, RateLimiter
from ..device import BlockDevice
from .intercept import Intercept

T = TypeVar("T")

_READS = frozenset({"read", "cache"})
_WRITES = frozenset({"write", "write_zeroes", "trim"})
_LARGEST = sys.float_info.max
"""Beyond it a whole number cannot be reckoned with, and another one is infinite."""

_WITH_DATA = frozenset({"read", "write"})


@dataclass(frozen=True, slots=True)
class Rate:
    """How much may pass per second, and how much at once after a pause.

    Raises:
        TypeError, ValueError: a number is out of range.

    """

    bytes: float | None = None
    """Bytes per second; None for no limit."""
    requests: float | None = None
    """Requests per second; None for no limit."""
    burst: float = 1.0
    """Seconds without requests that are saved up: after a pause, as much as the rate allows in that
    time passes at once. 0 spaces all requests evenly."""

    def __post_init__(self) -> None:
        """Validate the arguments."""
        _check_rate("bytes", self.bytes)
        _check_rate("requests", self.requests)
        if not _is_number(self.burst) or not 0 <= self.burst <= _LARGEST:
            raise ValueError(f"burst must be 0 or a number of seconds, not {self.burst!r}")
        for name, bucket in zip(("bytes", "requests"), self.limits(), strict=True):
            if bucket is not None and not bucket[1] <= _LARGEST:
                raise ValueError(
                    f"{name} per second, for {self.burst!r} seconds of burst, are too many"
                )

    def limits(self) -> list[tuple[float, float] | None]:
        """Return the rate and the capacity of the buckets for bytes and for requests."""
        return [
            None if rate is None else (rate, rate * self.burst)
            for rate in (self.bytes, self.requests)
        ]


def _check_rate(name: str, rate: float | None) -> None:
    if rate is not None and (not _is_number(rate) or not 0 < rate <= _LARGEST):
        raise ValueError(f"{name} must be a positive number per second, not {rate!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class RateLimited(Intercept):
    """Limits the bytes and the requests per second that pass: of all, of reads, and of writes.

    ::

        limited = RateLimited(device, Rate(bytes=100e6, requests=2000))
        limited.write_limit = Rate(bytes=20e6)

    Bytes are those that are moved, by reads and writes. Requests are these, and trims, zeroes and
    prefetches. A flush passes freely, since what it makes durable was counted already, and a
    question for extents does, too.

    **Fairness.** Requests pass in the order in which they came; reads and writes each among
    themselves, then, for the limit of all, together. So reads need not wait behind writes that
    only ``write_limit`` holds up.

    **Large requests.** One that is larger than a burst passes when a whole burst was saved, and
    those behind it wait until the rate has caught up with it. It is not cut.

    **Limits may be changed at any time** by setting :attr:`limit`, :attr:`read_limit` and
    :attr:`write_limit`; requests that wait are subject to the new ones at once. From the loop's
    thread only.

    Durability: that of ``inner``.

    Cancellation: safe at any time; a request that is cancelled while it waits costs nothing.

    Args:
        inner: the device below.
        limit: of all requests; None for no limit.
        read_limit: of reads and prefetches, beside.
        write_limit: of writes, trims and zeroes, beside.
        clock: tells the time, for tests.

    Raises:
        TypeError: a limit is no :class:`Rate`.

    """

    def __init__(
        self,
        inner: BlockDevice,
        limit: Rate | None = None,
        *,
        read_limit: Rate | None = None,
        write_limit: Rate | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(inner)
        self._all, self._reads, self._writes = (_Limit(clock) for _ in range(3))
        self.limit = limit
        self.read_limit = read_limit
        self.write_limit = write_limit

    @property
    def limit(self) -> Rate | None:
        """The limit of all requests; None for none."""
        return self._all.rate

    @limit.setter
    def limit(self, rate: Rate | None) -> None:
        self._all.set(rate)

    @property
    def read_limit(self) -> Rate | None:
        """The limit of reads and prefetches; None for none."""
        return self._reads.rate

    @read_limit.setter
    def read_limit(self, rate: Rate | None) -> None:
        self._reads.set(rate)

    @property
    def write_limit(self) -> Rate | None:
        """The limit of writes, trims and zeroes; None for none."""
        return self._writes.rate

    @write_limit.setter
    def write_limit(self, rate: Rate | None) -> None:
        self._writes.set(rate)

    async def intercept(
        self, command: str, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> T:
        """Wait for the limits' leave, then make the request."""
        if command in _READS:
            await self._acquire(self._reads, command, length)
        elif command in _WRITES:
            await self._acquire(self._writes, command, length)
        return await call()

    async def _acquire(self, own: _Limit, command: str, length: int) -> None:
        costs = (length if command in _WITH_DATA else 0, 1)
        await own.limiter.acquire(costs)
        try:
            await self._all.limiter.acquire(costs)
        except asyncio.CancelledError:
            own.limiter.give_back(costs)
            raise


class _Limit:
    """A limit, and what keeps it."""

    def __init__(self, clock: Clock | None) -> None:
        self.limiter = RateLimiter(clock)

    def set(self, rate: Rate | None) -> None:
        if not (rate is None or isinstance(rate, Rate)):
            raise TypeError(f"a limit must be a Rate, or None for no limit, not {rate!r}")
        self.rate = rate
        self.limiter.set_limits((rate or Rate()).limits())
