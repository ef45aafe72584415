"""What a dispatcher counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from ..latency import Latency
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
_NAMES = {number: Command(number).name.lower() for number in (_READ, _WRITE, *_COUNTERS)}
_UNKNOWN = "unknown"


def command_name(number: int) -> str:
    """What a command is called here: ``read``, ``write_zeroes``, ``unknown`` and so on."""
    return _NAMES.get(number, _UNKNOWN)


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
    errors_by_command: dict[str, int] = field(default_factory=dict)
    """Requests that were answered with an error, by the name of the command, where there were any.
    """
    in_flight: int = 0
    """Requests that have arrived and are not answered yet."""
    max_in_flight: int = 0
    """The most that were in flight at once, on any one connection, each until its reply left."""
    latency: dict[str, Latency] = field(
        default_factory=lambda: {name: Latency() for name in (*_NAMES.values(), _UNKNOWN)}
    )
    """How long requests took, those included that failed, by the name of the command."""

    @property
    def errors(self) -> int:
        """Requests that were answered with an error, for whatever reason."""
        return sum(self.errors_by_command.values())

    def count(self, request: Request, error: int) -> None:
        """Count a request that is being answered."""
        command = request.type
        if error:
            name = command_name(command)
            self.errors_by_command[name] = self.errors_by_command.get(name, 0) + 1
        elif command == _READ:
            self.reads += 1
            self.bytes_read += request.length
        elif command == _WRITE:
            self.writes += 1
            self.bytes_written += request.length
        else:
            counter = _COUNTERS[command]
            setattr(self, counter, getattr(self, counter) + 1)

    def sent(self, answered: list[Request], now: int) -> None:
        """Count what is known when replies have left.

        Args:
            answered: whose replies these are, in any order.
            now: nanoseconds, of the clock of :attr:`Request.arrival`.

        """
        if self.in_flight + len(answered) > self.max_in_flight:
            self.max_in_flight = self.in_flight + len(answered)
        # Those that came together often leave together: the bucket of a run of the same is found
        # once, and one look at each request is what can be afforded.
        count = command = arrival = 0
        for request in answered:
            if request.arrival == arrival and request.type == command:
                count += 1
                continue
            if count:
                self.latency[_NAMES.get(command, _UNKNOWN)].add(now - arrival, count)
            count, command, arrival = 1, request.type, request.arrival
        if count:
            self.latency[_NAMES.get(command, _UNKNOWN)].add(now - arrival, count)

    @classmethod
    def sum(cls, several: Iterable[Stats]) -> Stats:
        """The counters of several connections, added up as they are now."""
        total = cls()
        for stats in several:
            for name in _SUMS:
                setattr(total, name, getattr(total, name) + getattr(stats, name))
            # A copy: exporters call this in threads of their own.
            for name, number in stats.errors_by_command.copy().items():
                total.errors_by_command[name] = total.errors_by_command.get(name, 0) + number
            for name, latency in stats.latency.items():
                total.latency[name] += latency
            total.max_in_flight = max(total.max_in_flight, stats.max_in_flight)
        return total

    def copy(self) -> Stats:
        """The counters as they are now."""
        return Stats.sum([self])


_NO_SUMS = {"errors_by_command", "max_in_flight", "latency"}
_SUMS = [each.name for each in fields(Stats) if each.name not in _NO_SUMS]
