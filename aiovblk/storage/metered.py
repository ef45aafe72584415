"""What passes at one point of a stack of layers, in numbers."""

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
    """Counters of one command."""

    requests: int = 0
    """How many have ended, those included that failed."""
    errors: int = 0
    """How many raised something, be it that they were cancelled."""
    bytes: int = 0
    """What those covered that succeeded."""
    in_flight: int = 0
    """How many have begun and not ended."""
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    """How long they took, those included that failed."""


class Metered(Intercept):
    """Counts the requests that go through it.

    Above a cache it counts what is asked of that, below what the cache asks for. What the whole
    device is asked is counted anyway: ``mount.stats``.

    Durability: that of ``inner``.

    Args:
        inner: what the requests go to.

    Attributes:
        counts: the counters, by the name of the command: ``stats.counts["read"].latency.p99``.

    """

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self.counts = {command: CommandStats() for command in COMMANDS}

    async def intercept(
        self, command: str, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> T:
        """Count one."""
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
