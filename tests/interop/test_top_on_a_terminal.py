"""``aiovblk top`` on a real terminal, tmux's, with the counters of a fake /sys."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiovblk.cli.top_screen import BARS

from ..support.kernel_tree import KernelTree
from .tmux import Pane, pane

ROOT = Path(__file__).resolve().parent.parent.parent


class Disk:
    """A device that is attached in a fake /sys, and what it has done."""

    def __init__(self, root: Path) -> None:
        self.tree = KernelTree(root)
        self._directory = self.tree.device("nbd2", "43:64", sectors=2048, thread=4242)
        self.tree.process(4242, "keeper")
        self.tree.write(self._directory / "inflight", "       1        2\n")
        self._reads = 0
        self.read(0)

    def read(self, count: int) -> None:
        """Read 4 KiB so many times, 20 ms each."""
        self._reads += count
        counters = f"{self._reads} 0 {self._reads * 8} {self._reads * 20}" + " 0" * 13
        # In one piece: the program reads while this test writes.
        new = self._directory / "stat.new"
        self.tree.write(new, f"{counters}\n")
        new.rename(self._directory / "stat")


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "machine")


@contextmanager
def top(tmp_path: Path, *options: str, columns: int = 160, **variables: str) -> Iterator[Pane]:
    command = [
        *(sys.executable, "-m", "tests.support.top_on_tree", f"{tmp_path / 'machine'}"),
        *("--interval", "0.1", *options),
    ]
    environment = {"PYTHONPATH": f"{ROOT}", "LC_ALL": "C.UTF-8", "NO_COLOR": "", **variables}
    with pane(tmp_path, command, columns=columns, variables=environment) as shown:
        yield shown


def device_line(lines: list[str]) -> str:
    return next((line for line in lines if "/dev/nbd2" in line), "")


def while_reading(disk: Disk, condition: Callable[[str], bool]) -> Callable[[list[str]], bool]:
    """A condition on the device's line, to wait for; before each look some more is read."""

    def look(lines: list[str]) -> bool:
        disk.read(100)
        return condition(device_line(lines))

    return look


def has_ended(lines: list[str]) -> bool:
    return "ended" in " ".join(lines)


def has_bar(line: str) -> bool:
    return any(bar in line for bar in BARS)


def test_terminal_shows_the_course_of_the_reads(disk: Disk, tmp_path: Path) -> None:
    with top(tmp_path) as terminal:
        lines = terminal.until(device_line)
        assert lines[0] == "aiovblk top  1 device attached, each 0.1 s; Ctrl-C ends"
        assert not has_bar(device_line(lines))
        terminal.until(while_reading(disk, has_bar))
        terminal.press("C-c")
        assert terminal.until(has_ended)[-1] == "ended, status 0"
        # The screen is the one of before.
        assert not device_line(terminal.lines())


def test_terminal_shows_slow_requests_in_colour(disk: Disk, tmp_path: Path) -> None:
    with top(tmp_path) as terminal:
        lines = terminal.until(while_reading(disk, lambda line: "20.00" in line), styles=True)
        line = device_line(lines)
        assert "\x1b[1m\x1b[36m/dev/nbd2" in line
        assert "\x1b[33m20.00" in line.replace(" ", "")


def test_no_color_is_honoured(disk: Disk, tmp_path: Path) -> None:
    with top(tmp_path, NO_COLOR="1") as terminal:
        terminal.until(device_line)
        assert "\x1b[36m" not in "".join(terminal.lines(styles=True))


def test_narrower_terminal_has_no_sparklines(disk: Disk, tmp_path: Path) -> None:
    with top(tmp_path) as terminal:
        terminal.until(lambda lines: device_line(lines) and "WRITES" in lines[1])
        terminal.resize(90)
        lines = terminal.until(lambda lines: device_line(lines) and "WRITES" not in lines[1])
        assert device_line(lines).split()[:2] == ["/dev/nbd2", "1M"]


def test_plain_shows_the_plain_table(disk: Disk, tmp_path: Path) -> None:
    with top(tmp_path, "--plain") as terminal:
        lines = terminal.until(device_line)
        assert lines[0].split("  ")[0] == "DEVICE"
        assert "\x1b[" not in "".join(terminal.lines(styles=True))
        terminal.press("C-c")
        lines = terminal.until(has_ended)
        assert device_line(lines)  # the last table stays
