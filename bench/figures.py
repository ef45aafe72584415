"""What one run of a case shows."""

from __future__ import annotations

from dataclasses import dataclass


class LoadError(Exception):
    """A client failed, or a request did."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a server did in one run of a case.

    CPU times and latencies are microseconds, CPU times per request; ``megabytes`` are 10**6 bytes
    per second.
    """

    server_cpu: float
    client_cpu: float
    iops: float
    megabytes: float
    p50: float
    p99: float


MORE_IS_BETTER = ("iops", "megabytes")
