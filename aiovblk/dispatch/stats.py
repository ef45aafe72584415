"""Counters and latencies of the requests of one connection (statistics, metrics)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..latency import LatencyHistogram
from ..protocol import Command, Request
from .stats_sum import add_up

# Plain ints: an IntEnum's comparison costs as much as the rest.
_READ, _WRITE = int(Command.READ), int(Command.WRITE)
_COUNTERS = {
    int(Command.FLUSH): "flushes",
    int(Command.TRIM): "trims",
    int(Command.WRITE_ZEROES): "write_zeroes",
    int(Command.CACHE): "caches",
    int(Command.BLOCK_STATUS): "block_statuses",
}
_NAMES = {number: Command(number).name.lower() for number in (_READ, _WRITE, *_COUNTERS)}
_UNKNOWN = "unknown"


def command_name(number: int) -> str:
    """Return the name of a command: ``read``, ``write_zeroes``, ..., or ``unknown``."""
    return _NAMES.get(number, _UNKNOWN)


@dataclass(slots=True)
class Stats:
    """Counters of one connection, or a sum of several. Bytes are those of successful requests."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    trims: int = 0
    write_zeroes: int = 0
    caches: int = 0
    block_statuses: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors_by_command: dict[str, int] = field(default_factory=dict)
    """Requests that were answered with an error, by the name of the command; without zeroes."""
    in_flight: int = 0
    """Requests that have arrived and are not answered yet."""
    max_in_flight: int = 0
    """The most that were in flight at once, on any one connection, each until its reply left."""
    latency: dict[str, LatencyHistogram] = field(
        default_factory=lambda: {name: LatencyHistogram() for name in (*_NAMES.values(), _UNKNOWN)}
    )
    """Latency of requests, failed ones included, by the name of the command."""

    @property
    def errors(self) -> int:
        """All requests that were answered with an error."""
        return sum(self.errors_by_command.values())

    def record_in_flight(self) -> None:
        """Note how many are in flight now."""
        if self.in_flight > self.max_in_flight:
            self.max_in_flight = self.in_flight

    def record_batch(self, reads: list[int], writes: list[int], nanoseconds: int) -> None:
        """Count requests that succeeded at once, and whose replies were sent together.

        They never were in :attr:`in_flight`.

        Args:
            reads: bytes of each READ.
            writes: bytes of each WRITE.
            nanoseconds: the latency of each.

        """
        in_flight = self.in_flight
        if reads:
            count = len(reads)
            in_flight += count
            self.reads += count
            self.bytes_read += sum(reads)
            self.latency["read"].add(nanoseconds, count)
        if writes:
            count = len(writes)
            in_flight += count
            self.writes += count
            self.bytes_written += sum(writes)
            self.latency["write"].add(nanoseconds, count)
        if in_flight > self.max_in_flight:
            self.max_in_flight = in_flight

    def record_replies(
        self, succeeded: list[tuple[int, int, int]], failed: list[Request], now: int
    ) -> None:
        """Count requests that were in flight, and whose replies were sent together.

        Args:
            succeeded: command, length and arrival of each, in any order.
            failed: requests that were answered with an error.
            now: nanoseconds, of the clock of :attr:`Request.arrival`.

        """
        self.record_in_flight()
        self.in_flight -= len(succeeded) + len(failed)
        # Requests that arrived together are often answered together: a run of the same command is
        # counted at once. This is the only pass over the requests that the hot path can afford.
        count = length = command = arrival = 0
        for each_command, each_length, each_arrival in succeeded:
            if each_arrival == arrival and each_command == command:
                count += 1
                length += each_length
                continue
            if count:
                self._add(command, count, length, now - arrival)
            count, command = 1, each_command
            arrival, length = each_arrival, each_length
        if count:
            self._add(command, count, length, now - arrival)
        for request in failed:
            name = command_name(request.type)
            self.errors_by_command[name] = self.errors_by_command.get(name, 0) + 1
            self.latency[name].add(now - request.arrival)

    def _add(self, command: int, count: int, length: int, nanoseconds: int) -> None:
        self.latency[_NAMES[command]].add(nanoseconds, count)
        if command == _READ:
            self.reads += count
            self.bytes_read += length
        elif command == _WRITE:
            self.writes += count
            self.bytes_written += length
        else:
            counter = _COUNTERS[command]
            setattr(self, counter, getattr(self, counter) + count)

    @classmethod
    def sum(cls, several: Iterable[Stats]) -> Stats:
        """Return the sum of the counters of several connections."""
        total = cls()
        add_up(total, several)
        return total

    def copy(self) -> Stats:
        """Return a snapshot of the counters."""
        return Stats.sum([self])
