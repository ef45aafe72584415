"""The screen of ``aiovblk top`` on a terminal, drawn by rich (the extra ``cli``).

Beside the numbers of the plain table each device has a sparkline for reads and one for writes: the
bytes per second of the last samples, the newest at the right, each scaled to the largest rate that
the device has on the screen. They have the room that the terminal leaves; where that is too little
they are left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..kernel.sysfs import Disk
from .device_rates import HEADER, LAST_COLUMN, Activity, format_rates

BARS = "▁▂▃▄▅▆▇█"

MAX_TREND = 40
"""Samples that a sparkline shows at most."""

MIN_TREND = 8
"""Samples for which there must be room, or there are no sparklines."""

FIXED_WIDTH = 108
"""Columns of a terminal that the numbers, and a server's name of usual length, take."""

SLOW, VERY_SLOW = 0.010, 0.100
"""Mean seconds of a request from which on it is shown in yellow, and in red."""


@contextmanager
def screen(
    interval: float, console: Console | None = None
) -> Iterator[Callable[[list[Activity]], None]]:
    """Show devices on the terminal's alternate screen until the end of the block.

    Args:
        interval: seconds between two samples, which the screen shows.
        console: where to draw; by default standard output.

    Yields:
        A function that shows the devices it is given.

    """
    history = History()
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def show(devices: list[Activity]) -> None:
            history.add(devices)
            live.update(draw(devices, history, interval, live.console.width), refresh=True)

        show([])
        yield show


class History:
    """The bytes per second of each device in the last samples, reads and writes."""

    def __init__(self) -> None:
        self._rates: dict[tuple[Disk, int | None], deque[tuple[float, float]]] = {}

    def add(self, devices: Sequence[Activity]) -> None:
        """Add a sample; devices that are gone, or attached anew, are forgotten."""
        kept: dict[tuple[Disk, int | None], deque[tuple[float, float]]] = {}
        for each in devices:
            key = each.disk, each.generation
            kept[key] = self._rates.get(key, deque(maxlen=MAX_TREND))
            if each.rates:
                kept[key].append((each.rates.bytes_read, each.rates.bytes_written))
        self._rates = kept

    def of(self, device: Activity) -> tuple[list[float], list[float]]:
        """Return the rates of a device, reads and writes, the oldest first."""
        rates = self._rates.get((device.disk, device.generation), ())
        return [read for read, _ in rates], [written for _, written in rates]


def draw(devices: Sequence[Activity], history: History, interval: float, width: int) -> Group:
    """Draw the whole screen.

    Args:
        devices: what is attached.
        history: their rates until now.
        interval: seconds between two samples.
        width: columns of the terminal.

    """
    number = f"{len(devices)} device{'' if len(devices) == 1 else 's'} attached"
    title = Text.assemble(
        ("aiovblk top", "bold"), (f"  {number}, each {interval:g} s; Ctrl-C ends", "dim")
    )
    return Group(title, Text(), _table(devices, history, trend_length(width)))


def trend_length(width: int) -> int:
    """Return how many samples a sparkline shows in a terminal of ``width`` columns, perhaps 0."""
    room = (width - FIXED_WIDTH) // 2
    return min(room, MAX_TREND) if room >= MIN_TREND else 0


def _table(devices: Sequence[Activity], history: History, length: int) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(HEADER[0], no_wrap=True)
    for name in HEADER[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    if length:
        table.add_column("READS", width=length, no_wrap=True)
        table.add_column("WRITES", width=length, no_wrap=True)
    table.add_column(LAST_COLUMN)  # what has to give way in a narrow terminal
    for each in devices:
        trends = []
        if length:
            reads, writes = history.of(each)
            peak = max([*reads[-length:], *writes[-length:]], default=0.0)
            trends = [
                Text(sparkline(reads[-length:], peak).rjust(length), "green"),
                Text(sparkline(writes[-length:], peak).rjust(length), "magenta"),
            ]
        table.add_row(Text(each.path, "bold cyan"), *_numbers(each), *trends, _server(each))
    return table


def sparkline(rates: Sequence[float], peak: float) -> str:
    """Draw a bar for each rate, eight heights up to ``peak``; a space where nothing happened."""
    return "".join(
        BARS[min(int(rate / peak * len(BARS)), len(BARS) - 1)] if rate > 0 else " "
        for rate in rates
    )


def _numbers(device: Activity) -> list[Text]:
    """Return the cells between the name of a device and its sparklines."""
    *counts, latency = format_rates(device.rates)
    seconds = (device.rates and device.rates.latency) or 0.0
    speed = "red" if seconds >= VERY_SLOW else "yellow" if seconds >= SLOW else ""
    return [
        Text(device.size),
        *(Text(count, "dim" if count in ("-", "0", "0.0") else "") for count in counts),
        Text(str(device.in_flight), "" if device.in_flight else "dim"),
        Text(latency, "dim" if latency == "-" else speed),
    ]


def _server(device: Activity) -> Text:
    cell = Text(device.server) if device.server else Text("gone", "bold red")
    cell.no_wrap, cell.overflow = True, "ellipsis"
    return cell
