"""Count requests, bytes, errors and latencies at one point of a stack of layers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import TypeVar

from ..device import BlockDevice
from ..latency import LatencyHistogram
from .intercept import Intercept

T = TypeVar("T")

COMMANDS = ("read", "write", "flush", "trim", "write_zeroes", "extents", "cache")


@dataclass(slots=True)
class CommandStats:
    """The counters of one command."""

    requests: int = 0
    """Requests that have ended, with or without an error."""
    errors: int = 0
    """Requests that raised an exception; cancellation counts."""
    bytes: int = 0
    """Bytes that the successful requests covered."""
    in_flight: int = 0
    """Requests that have begun and not ended."""
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    """How long the requests took, with or without an error."""


class Metered(Intercept):
    """Counts the requests that pass through it.

    Above a cache it counts the requests to the cache, below it those that the cache makes. The
    requests to the whole device are always counted: ``mount.stats``.

    Durability: that of ``inner``.

    Args:
        inner: the device below.

    Attributes:
        counts: the counters by the name of the command: ``metered.counts["read"].latency.p99``.

    """

    passes_bitmaps = True

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self.counts = {command: CommandStats() for command in COMMANDS}

    async def intercept(
        self, command: str, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> T:
        """Run a request, and count it."""
        counts = self.counts[command]
        counts.in_flight += 1
        began = monotonic_ns()
        try:
            result = await call()
            counts.bytes += length
            return result
        except BaseException:
            counts.errors += 1
            raise
        finally:
            counts.in_flight -= 1
            counts.requests += 1
            counts.latency.add(monotonic_ns() - began)
