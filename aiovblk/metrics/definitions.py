"""The metrics, with names and descriptions that both exporters share: add a new counter here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from ..dispatch import LatencyHistogram, Stats


class StatsSource(Protocol):
    """Anything with counters: :class:`~aiovblk.Mount`, :class:`~aiovblk.Server`, its clients."""

    @property
    def stats(self) -> Stats:
        """The counters, as they are now."""


class Measure(NamedTuple):
    """A metric: one value, or one for each value of a label."""

    name: str
    """In snake case, without prefix and unit."""
    text: str
    """The description for users."""
    unit: str
    """``bytes``, or empty for a number of requests."""
    monotonic: bool
    """Whether it is a counter, which never decreases; otherwise a gauge."""
    label: str
    """Name of the label that distinguishes the values; empty if there is one value."""
    values: Callable[[Stats], Iterable[tuple[str, int]]]
    """Returns each value of the label, and the metric's value."""


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
    """Return the commands that were used at least once, with their latency histograms."""
    return [(name, latency) for name, latency in stats.latency.items() if latency.buckets]
