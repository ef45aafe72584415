"""What a dispatcher counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """Counters of one mounted device, since it was mounted. Bytes are payload that succeeded."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    trims: int = 0
    write_zeroes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    """Requests that were answered with an error, for whatever reason."""
    in_flight: int = 0
    """Requests that have arrived and are not answered yet."""
