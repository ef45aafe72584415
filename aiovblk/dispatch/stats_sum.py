"""Merge counters: the statistics of several connections, or workers, as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .stats import Stats

_NO_SUMS = {"errors_by_command", "max_in_flight", "latency"}


def add_up(total: Stats, several: Iterable[Stats]) -> None:
    """Add the counters of several connections to ``total``."""
    sums = [each.name for each in fields(total) if each.name not in _NO_SUMS]
    for stats in several:
        for name in sums:
            setattr(total, name, getattr(total, name) + getattr(stats, name))
        # A copy: metrics exporters call this in other threads.
        for name, number in stats.errors_by_command.copy().items():
            total.errors_by_command[name] = total.errors_by_command.get(name, 0) + number
        for name, latency in stats.latency.items():
            total.latency[name] += latency
        total.max_in_flight = max(total.max_in_flight, stats.max_in_flight)
