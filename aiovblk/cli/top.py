"""``aiovblk top``: show throughput and latency of devices, as the kernel counts them."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from dataclasses import dataclass

from ..kernel import sysfs
from ..text import escape
from . import values
from .parser import CommandParser
from .sizes import format_size

CLEAR = "\x1b[H\x1b[J"  # cursor to the upper left corner, erase from there (ECMA-48: CUP, ED)

HEADER = ("DEVICE", "SIZE", "READ/S", "WRITE/S", "READ MB/S", "WRITE MB/S", "IN FLIGHT", "MEAN MS")
LAST_COLUMN = "SERVER"

# Indices of the fields of /sys/block/*/stat (Documentation/block/stat.rst). Each kind of request
# has a count and the milliseconds that all of them took; reads and writes have sectors as well.
_READS, _READ_SECTORS, _WRITES, _WRITTEN_SECTORS = 0, 2, 4, 6
_COUNTS = (_READS, _WRITES, 11, 15)  # discards since Linux 4.18, flushes since 5.5
_MILLISECONDS = (3, 7, 14, 16)
_FIELDS = 17


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of one device at one time."""

    time: float
    """Seconds of a monotonic clock."""
    counters: list[int]
    """The fields of /sys/block/nbdN/stat."""
    thread: int | None
    """The thread that attached it; if that differs, the device was attached anew."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of a device between two samples."""

    reads: float
    """Per second; so are the next three."""
    writes: float
    bytes_read: float
    bytes_written: float
    latency: float | None
    """Mean seconds of a request; None if none was completed."""


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = "%(prog)s [OPTION...]"
    parser.description = (
        "Show throughput and latency of all attached NBD devices, as the kernel counts them, "
        "until Ctrl-C. MB are millions of bytes; MEAN MS is the mean time of a request."
    )
    parser.add_argument("--once", action="store_true", help="print one table and exit")
    parser.add_argument(
        "--interval",
        type=values.seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between two tables (default %(default)s)",
    )
    parser.show_examples(("one table, of the last five seconds", "aiovblk top --once --interval 5"))
    parser.set_defaults(command=watch)


def watch(arguments: Namespace) -> None:
    """Print a table every ``arguments.interval`` seconds until Ctrl-C, or one table."""
    before = samples()
    try:
        while True:
            time.sleep(arguments.interval)
            now = samples()
            screen = table(before, now)
            print(f"{CLEAR}{screen}" if _is_live(arguments) else screen, flush=True)
            if arguments.once:
                return
            before = now
    except KeyboardInterrupt:
        pass  # the usual end


def _is_live(arguments: Namespace) -> bool:
    return sys.stdout.isatty() and not arguments.once


def samples() -> dict[int, Sample]:
    """Read the counters of every attached device, by its index."""
    return {
        index: Sample(time.monotonic(), counters, sysfs.server_thread(index))
        for index in sysfs.indices()
        if not sysfs.is_free(index) and (counters := sysfs.io_counters(index))
    }


def rates(before: Sample, now: Sample) -> Rates:
    """Calculate the rates between two samples."""
    # Older kernels count fewer kinds of requests.
    earlier = before.counters + [0] * (_FIELDS - len(before.counters))
    later = now.counters + [0] * (_FIELDS - len(now.counters))
    seconds = now.time - before.time
    grown = [new - old for old, new in zip(earlier, later, strict=False)]
    completed = sum(grown[field] for field in _COUNTS)
    milliseconds = sum(grown[field] for field in _MILLISECONDS)
    return Rates(
        reads=grown[_READS] / seconds,
        writes=grown[_WRITES] / seconds,
        bytes_read=grown[_READ_SECTORS] * sysfs.SECTOR / seconds,
        bytes_written=grown[_WRITTEN_SECTORS] * sysfs.SECTOR / seconds,
        latency=milliseconds / 1000 / completed if completed else None,
    )


def table(before: dict[int, Sample], now: dict[int, Sample]) -> str:
    """Format a line per attached device; one that was just attached has no rates yet."""
    rows: list[tuple[str, ...]] = [(*HEADER, LAST_COLUMN)]
    for index, sample in now.items():
        earlier = before.get(index)
        if earlier is None or earlier.thread != sample.thread:
            earlier = None
        numbers = ["-"] * 5 if earlier is None else _format_rates(rates(earlier, sample))
        *counts, latency = numbers
        flight = str(sysfs.in_flight(index))
        size = format_size(sysfs.size(index))
        rows.append((f"/dev/nbd{index}", size, *counts, flight, latency, _server(sample.thread)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _format_rates(rate: Rates) -> list[str]:
    return [
        f"{rate.reads:.0f}",
        f"{rate.writes:.0f}",
        f"{rate.bytes_read / 1e6:.1f}",
        f"{rate.bytes_written / 1e6:.1f}",
        "-" if rate.latency is None else f"{rate.latency * 1000:.2f}",
    ]


def _server(thread: int | None) -> str:
    process = sysfs.process_of(thread) if thread is not None else None
    return f"{process[0]} ({escape(process[1])})" if process else "gone"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Align the numbers right, the names left."""
    first, *numbers, last = (
        text.ljust(width) if column in (0, len(row) - 1) else text.rjust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *numbers, last]).rstrip()
