"""A latency histogram with logarithmic buckets: quantiles from a few integers.

There are four buckets for each power of two, so a value read from it is at most a quarter too high,
from nanoseconds to hours. The bucket of a number of nanoseconds follows from the position of its
highest bit and from the two bits below that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, zip_longest

NANOSECONDS = 1_000_000_000
"""Nanoseconds in a second."""


@dataclass(slots=True)
class LatencyHistogram:
    """Count durations in logarithmic buckets.

    A dispatcher counts the time from the arrival of a request until its reply is handed to the
    socket.
    """

    buckets: list[int] = field(default_factory=list)
    """The count of each bucket. Bucket N has durations of less than ``upper_bound(N)`` nanoseconds,
    and at least ``upper_bound(N - 1)``. The list ends with the bucket of the slowest."""
    total: int = 0
    """The sum of all durations in nanoseconds."""

    def add(self, nanoseconds: int, count: int = 1) -> None:
        """Count ``count`` durations of ``nanoseconds`` each."""
        shift = nanoseconds.bit_length() - 3
        bucket = 4 * shift + (nanoseconds >> shift) if shift > 0 else nanoseconds
        try:
            self.buckets[bucket] += count
        except IndexError:
            self.buckets += [0] * (bucket - len(self.buckets)) + [count]
        self.total += nanoseconds * count

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        """Return the sum of two histograms."""
        pairs = zip_longest(self.buckets, other.buckets, fillvalue=0)
        return LatencyHistogram([left + right for left, right in pairs], self.total + other.total)

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.buckets)

    @property
    def mean(self) -> float:
        """The mean in seconds; 0 if there were none."""
        return self.total / NANOSECONDS / max(self.count, 1)

    @property
    def p50(self) -> float:
        """The median in seconds; 0 if there were none."""
        return self.quantile(0.5)

    @property
    def p99(self) -> float:
        """The 99th percentile in seconds."""
        return self.quantile(0.99)

    @property
    def p999(self) -> float:
        """The 99.9th percentile in seconds."""
        return self.quantile(0.999)

    def quantile(self, fraction: float) -> float:
        """Return the quantile for a fraction of 0 to 1, in seconds; at most a quarter too high."""
        needed = max(fraction * self.count, 1)
        for bucket, counted in enumerate(accumulate(self.buckets)):
            if counted >= needed:
                return upper_bound(bucket) / NANOSECONDS
        return 0.0

    def count_below(self, nanoseconds: int) -> int:
        """Return how many durations were less than a power of two of nanoseconds."""
        ends = enumerate(self.buckets)
        return sum(count for bucket, count in ends if upper_bound(bucket) <= nanoseconds)


def upper_bound(bucket: int) -> int:
    """Return the exclusive upper bound of a bucket, in nanoseconds."""
    shift = max(bucket // 4 - 1, 0)
    return (bucket - 4 * shift + 1) << shift
