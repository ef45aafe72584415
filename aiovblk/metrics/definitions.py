"""What is measured, in words that both exporters use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from ..dispatch import LatencyHistogram, Stats


class StatsSource(Protocol):
    """What has counters: a :class:`~aiovblk.Mount`, a :class:`~aiovblk.Server`, its clients."""

    @property
    def stats(self) -> Stats:
        """The counters, as they are now."""


class Measure(NamedTuple):
    """One number, or one for each value of a label."""

    name: str
    """Words with underscores, without the unit."""
    text: str
    unit: str
    """``bytes``, or nothing where requests are counted."""
    monotonic: bool
    """Whether it only ever grows."""
    label: str
    """What the values are told apart by; empty if there is one."""
    values: Callable[[Stats], Iterable[tuple[str, int]]]
    """The value of the label, and the number."""


MEASURES = (
    Measure(
        "request_errors",
        "Requests that were answered with an error",
        "",
        True,
        "command",
        lambda stats: [
            (name, stats.errors_by_command.get(name, 0)) for name, _ in used_commands(stats)
        ],
    ),
    Measure(
        "payload",
        "Payload of the requests that succeeded",
        "bytes",
        True,
        "direction",
        lambda stats: [("read", stats.bytes_read), ("write", stats.bytes_written)],
    ),
    Measure(
        "requests_in_flight",
        "Requests that have arrived and are not answered yet",
        "",
        False,
        "",
        lambda stats: [("", stats.in_flight)],
    ),
    Measure(
        "max_requests_in_flight",
        "The most requests that were in flight at once on one connection",
        "",
        False,
        "",
        lambda stats: [("", stats.max_in_flight)],
    ),
)

DURATION = "Time from the arrival of a request until its reply was handed to the socket"


def used_commands(stats: Stats) -> list[tuple[str, LatencyHistogram]]:
    """The commands that were used at least once, and how long they took."""
    return [(name, latency) for name, latency in stats.latency.items() if latency.buckets]
