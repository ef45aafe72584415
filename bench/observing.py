"""What the statistics and events cost that are always on: the dispatcher with and without them.

    python -m bench --cases statistics

Both are measured in one process, directly after each other and in turns the first; what is compared
is the ratio of two neighbours, and the median of all such ratios.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import uvloop

from aiovblk import BlockDevice
from aiovblk.dispatch import DEFAULT_SLOW_REQUEST, Dispatcher, Stats
from aiovblk.events import EventBroadcaster
from aiovblk.protocol import Request

from .dispatch import CASES, microseconds

SMALL = {case[0]: case[1:] for case in CASES if case[0].startswith("4k")}
"""What they cost is the same for large requests, where it is lost in the time of copying."""

NAME = "statistics and events off vs on"

PAIRS = 5
"""In each round: short ones, since a machine that others use drifts within seconds."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time per request without and with them, microseconds, and how the second compares.

    All three are medians: the ratio is not that of the other two.
    """

    off: float
    on: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Observing:
    """What was measured, by case."""

    python: str
    pairs: int
    costs: Mapping[str, Cost]


class Uncounted(Stats):
    """Counts nothing but what is in flight, which the dispatcher itself needs."""

    __slots__ = ()

    def record_batch(self, reads: list[int], writes: list[int], nanoseconds: int) -> None:
        """Count nothing: these were never in flight."""

    def record_replies(
        self, succeeded: list[tuple[int, int, int]], failed: list[Request], now: int
    ) -> None:
        """Take note that they are in flight no more."""
        self.in_flight -= len(succeeded) + len(failed)


def measure_observing(rounds: int) -> Observing:
    """Measure all cases, ``PAIRS`` times in each round."""
    pairs = rounds * PAIRS
    costs = {name: _cost(name, pairs) for name in SMALL}
    return Observing(platform.python_version(), pairs, costs)


def cost(pairs: list[tuple[float, float]]) -> Cost:
    """From single figures, without and with, to medians."""
    return Cost(
        off=median(off for off, _ in pairs),
        on=median(on for _, on in pairs),
        ratio=median(on / off for off, on in pairs),
    )


def _cost(name: str, pairs: int) -> Cost:
    measured = []
    for number in range(pairs):
        first, second = (_run(name, is_on=is_on) for is_on in (number % 2 > 0, number % 2 == 0))
        measured.append((second, first) if number % 2 else (first, second))
    return cost(measured)


def _run(name: str, *, is_on: bool) -> float:
    count, depth, length, command = SMALL[name]
    feed = EventBroadcaster()
    listener = feed.subscribe()  # held, since the feed forgets who is gone

    def make(device: BlockDevice) -> Dispatcher:
        if not is_on:
            return Dispatcher(device, Uncounted(), on_disconnect=lambda: None)
        return Dispatcher(
            device,
            Stats(),
            slow_request=DEFAULT_SLOW_REQUEST,
            on_event=feed.publish,
            on_disconnect=lambda: None,
        )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        used = runner.run(microseconds(count // PAIRS, depth, length, command, make=make))
    assert not listener.drain()  # a request that failed would have been published
    return used
