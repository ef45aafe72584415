"""What ``aiovblk top`` draws on a terminal."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from aiovblk.cli.device_rates import Activity, Rates
from aiovblk.cli.top_screen import (
    FIXED_WIDTH,
    MAX_TREND,
    MIN_TREND,
    History,
    draw,
    screen,
    sparkline,
    trend_length,
)

WIDE = 200


def activity(
    read: float = 0.0,
    written: float = 0.0,
    *,
    thread: int = 7,
    latency: float | None = None,
    server: str = "7 (python)",
) -> Activity:
    rates = Rates(read / 4096, written / 4096, read, written, latency)
    return Activity(3, thread, "64M", rates, 2, server)


def lines(*devices: Activity, history: History | None = None, width: int = WIDE) -> list[str]:
    console = Console(file=StringIO(), width=width, height=40)
    with console.capture() as capture:
        console.print(draw(devices, history or History(), 1.0, width))
    return [line.rstrip() for line in capture.get().splitlines()]


def styled(device: Activity) -> str:
    """What is drawn, with its escape sequences."""
    console = Console(
        file=StringIO(),
        width=WIDE,
        height=40,
        force_terminal=True,
        color_system="standard",
        no_color=False,
    )
    with console.capture() as capture:
        console.print(draw([device], History(), 1.0, WIDE))
    return capture.get()


def test_sparkline_has_the_peak_at_full_height_and_a_space_for_nothing() -> None:
    assert sparkline([0, 1, 50, 99, 100], 100) == " ▁▅██"


def test_sparkline_of_an_idle_device_is_empty() -> None:
    assert sparkline([0, 0], 0.0) == "  "


def test_numbers_stand_under_their_headers() -> None:
    title, _, header, row = lines(activity(8_192_000, 4_096_000, latency=0.00123))
    assert title == "aiovblk top  1 device attached, each 1 s; Ctrl-C ends"
    assert row.split() == [
        *("/dev/nbd3", "64M", "2000", "1000", "8.2", "4.1", "2", "1.23"),
        *("7", "(python)"),
    ]
    assert header.index("SERVER") == row.index("7 (python)")
    assert header.index("MEAN MS") + len("MEAN MS") == row.index("1.23") + len("1.23")


def test_device_that_was_just_attached_has_no_rates_yet() -> None:
    *_, row = lines(Activity(3, 7, "64M", None, 0, "7 (python)"))
    assert row.split()[2:8] == [*"-----"[:4], "0", "-"]


def test_reads_and_writes_of_a_device_have_one_scale() -> None:
    history = History()
    for device in (activity(100, 0), activity(50, 800), activity(0, 400)):
        history.add([device])
    *_, row = lines(device, history=history)
    reads, writes = row[row.index("-") + 1 : row.index("7 (")].split()
    assert (reads, writes) == ("▂▁", "█▅")


def test_sparkline_shows_the_newest_samples_at_the_right() -> None:
    history = History()
    for number in range(MAX_TREND + 5):
        device = activity(1000 if number >= MAX_TREND + 3 else 1)
        history.add([device])
    *_, row = lines(device, history=history)
    assert "▁" * (MAX_TREND - 2) + "██" in row


def test_device_that_was_attached_anew_begins_anew() -> None:
    history = History()
    history.add([activity(100)])
    history.add([activity(100, thread=8)])
    assert history.of(activity(thread=8)) == ([100], [0])
    assert history.of(activity()) == ([], [])


def test_device_that_is_gone_is_forgotten() -> None:
    history = History()
    history.add([activity(100)])
    history.add([])
    assert history.of(activity()) == ([], [])


@pytest.mark.parametrize(
    ("width", "length"),
    [
        (80, 0),
        (FIXED_WIDTH + 2 * MIN_TREND - 1, 0),
        (FIXED_WIDTH + 2 * MIN_TREND, MIN_TREND),
        (1000, MAX_TREND),
    ],
)
def test_sparklines_take_the_room_that_is_left(width: int, length: int) -> None:
    assert trend_length(width) == length
    assert ("READS" in lines(activity(), width=width)[2]) == bool(length)


def test_narrow_terminal_cuts_the_name_of_the_server_and_no_number() -> None:
    _, _, header, row = lines(activity(server="4711 (a-server-of-a-long-name)"), width=84)
    assert "MEAN MS" in header
    assert row.split()[:8] == ["/dev/nbd3", "64M", "0", "0", "0.0", "0.0", "2", "-"]
    assert len(row) <= 84
    assert row.endswith("…")


@pytest.mark.parametrize(
    ("latency", "code"), [(0.005, None), (0.010, "33"), (0.099, "33"), (0.100, "31")]
)
def test_slow_requests_are_yellow_and_very_slow_ones_red(latency: float, code: str | None) -> None:
    found = re.search(
        rf"(?:\x1b\[(\d+)m)? *{latency * 1000:.2f}", styled(activity(latency=latency))
    )
    assert found
    assert found[1] == code


def test_server_that_is_gone_is_red() -> None:
    assert "\x1b[1;31mgone" in styled(activity(server=""))


def test_name_of_a_server_is_no_markup() -> None:
    *_, row = lines(activity(server="7 ([red]x[/])"))
    assert row.endswith("7 ([red]x[/])")


def test_screen_is_the_alternate_one_and_left_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    output = StringIO()
    console = Console(file=output, width=WIDE, height=20, force_terminal=True)
    with screen(0.5, console) as show:
        assert "0 devices attached, each 0.5 s" in output.getvalue()
        show([activity(4096)])
        assert "/dev/nbd3" in output.getvalue()
    assert output.getvalue().startswith("\x1b[?1049h")
    assert "\x1b[?1049l" in output.getvalue()
