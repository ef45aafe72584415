"""``aiovblk top``: show throughput and latency of devices, as the kernel counts them.

On a terminal, and where rich is installed (the extra ``cli``), :mod:`.top_screen` shows it in
colours and with the course of the last seconds; else it is a table of plain text.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import values
from .device_rates import HEADER, LAST_COLUMN, Activity, activities, format_rates, samples
from .parser import CommandParser

CLEAR = "\x1b[H\x1b[J"  # cursor to the upper left corner, erase from there (ECMA-48: CUP, ED)

Show = Callable[[list[Activity]], None]


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = "%(prog)s [OPTION...]"
    parser.description = (
        "Show throughput and latency of all attached devices (NBD and ublk), as the kernel counts "
        "them, until Ctrl-C. MB are millions of bytes; MEAN MS is the mean time of a request. On a "
        "terminal in colours, where the extra `cli` is installed."
    )
    parser.add_argument("--once", action="store_true", help="print one table and exit")
    parser.add_argument("--plain", action="store_true", help="show plain text on a terminal, too")
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
    """Show a table every ``arguments.interval`` seconds until Ctrl-C, or one table."""
    try:
        with _display(arguments) as show:
            before = samples()
            while True:
                time.sleep(arguments.interval)
                now = samples()
                show(activities(before, now))
                if arguments.once:
                    return
                before = now
    except KeyboardInterrupt:
        pass  # the usual end


@contextmanager
def _display(arguments: Namespace) -> Iterator[Show]:
    """Choose how tables are shown; yields the function that shows one."""
    # A terminal in an editor, say, neither moves the cursor nor erases; rich draws nothing there.
    is_dumb = os.environ.get("TERM", "").lower() in {"dumb", "unknown"}
    is_live = sys.stdout.isatty() and not is_dumb and not arguments.once
    if is_live and not arguments.plain:
        try:
            from .top_screen import screen
        except ModuleNotFoundError:  # rich comes with aiovblk[cli]
            pass
        else:
            with screen(arguments.interval) as show:
                yield show
            return
    clear = CLEAR if is_live else ""
    yield lambda devices: print(f"{clear}{table(devices)}", flush=True)


def table(devices: list[Activity]) -> str:
    """Format a line per attached device; one that was just attached has no rates yet."""
    rows: list[tuple[str, ...]] = [(*HEADER, LAST_COLUMN)]
    for each in devices:
        *counts, latency = format_rates(each.rates)
        numbers = (*counts, str(each.in_flight), latency)
        rows.append((each.path, each.size, *numbers, each.server or "gone"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Align the numbers right, the names left."""
    first, *numbers, last = (
        text.ljust(width) if column in (0, len(row) - 1) else text.rjust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *numbers, last]).rstrip()
