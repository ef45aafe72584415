"""What a dispatcher counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from ..protocol import Command, Request

# Plain ints: an IntEnum's comparison costs as much as the rest.
_READ, _WRITE = int(Command.READ), int(Command.WRITE)
_COUNTERS = {
    int(Command.FLUSH): "flushes",
    int(Command.TRIM): "trims",
    int(Command.WRITE_ZEROES): "write_zeroes",
    int(Command.CACHE): "caches",
    int(Command.BLOCK_STATUS): "block_statuses",
}


@dataclass(slots=True)
class Stats:
    """Counters of one device, since it is served. Bytes are payload that succeeded."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    trims: int = 0
    write_zeroes: int = 0
    caches: int = 0
    block_statuses: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    """Requests that were answered with an error, for whatever reason."""
    in_flight: int = 0
    """Requests that have arrived and are not answered yet."""

    def count(self, request: Request, error: int) -> None:
        """Count a request that is being answered."""
        command = request.type
        if error:
            self.errors += 1
        elif command == _READ:
            self.reads += 1
            self.bytes_read += request.length
        elif command == _WRITE:
            self.writes += 1
            self.bytes_written += request.length
        else:
            counter = _COUNTERS[command]
            setattr(self, counter, getattr(self, counter) + 1)

    @classmethod
    def sum(cls, several: Iterable[Stats]) -> Stats:
        """The counters of several connections, added up as they are now."""
        total = cls()
        for stats in several:
            for field in fields(cls):
                setattr(total, field.name, getattr(total, field.name) + getattr(stats, field.name))
        return total
