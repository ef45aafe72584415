"""How long requests took, in a few integers.

A histogram whose buckets grow with what they count, four to each power of two: from nanoseconds to
hours, what is read from it is a quarter too much at most. The bucket of a number of nanoseconds is
made of where its highest bit is, and of the two bits behind that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, zip_longest

NANOSECONDS = 1_000_000_000
"""In a second."""


@dataclass(slots=True)
class LatencyHistogram:
    """How long each of many took.

    Of a dispatcher: from the arrival of a request until its reply was handed to the socket.
    """

    buckets: list[int] = field(default_factory=list)
    """How many took how long: those of bucket N took less than ``upper_bound(N)`` nanoseconds, and
    those of the buckets before it did not take longer. There are as many as the slowest needs."""
    total: int = 0
    """Nanoseconds that all took together."""

    def add(self, nanoseconds: int, count: int = 1) -> None:
        """Count some that took as long as each other."""
        shift = nanoseconds.bit_length() - 3
        bucket = 4 * shift + (nanoseconds >> shift) if shift > 0 else nanoseconds
        try:
            self.buckets[bucket] += count
        except IndexError:
            self.buckets += [0] * (bucket - len(self.buckets)) + [count]
        self.total += nanoseconds * count

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        """Both together."""
        pairs = zip_longest(self.buckets, other.buckets, fillvalue=0)
        return LatencyHistogram([mine + theirs for mine, theirs in pairs], self.total + other.total)

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.buckets)

    @property
    def mean(self) -> float:
        """Seconds; 0 if there were none."""
        return self.total / NANOSECONDS / max(self.count, 1)

    @property
    def p50(self) -> float:
        """Seconds in which half of them were answered; 0 if there were none."""
        return self.quantile(0.5)

    @property
    def p99(self) -> float:
        """Seconds in which 99 of 100 were answered."""
        return self.quantile(0.99)

    @property
    def p999(self) -> float:
        """Seconds in which 999 of 1000 were answered."""
        return self.quantile(0.999)

    def quantile(self, share: float) -> float:
        """Seconds in which this share of them, 0 to 1, was answered; a quarter too many at most."""
        wanted = max(share * self.count, 1)
        for bucket, answered in enumerate(accumulate(self.buckets)):
            if answered >= wanted:
                return upper_bound(bucket) / NANOSECONDS
        return 0.0

    def count_below(self, nanoseconds: int) -> int:
        """How many took less than a power of two of nanoseconds."""
        ends = enumerate(self.buckets)
        return sum(count for bucket, count in ends if upper_bound(bucket) <= nanoseconds)


def upper_bound(bucket: int) -> int:
    """Nanoseconds that are too many for a bucket."""
    shift = max(bucket // 4 - 1, 0)
    return (bucket - 4 * shift + 1) << shift
