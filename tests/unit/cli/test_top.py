"""``aiovblk top`` on a fake /sys."""

from __future__ import annotations

import sys
import time

import pytest

from aiovblk import cli
from aiovblk.cli import top
from aiovblk.cli.device_rates import Sample, activities, rates, samples
from aiovblk.cli.top import table
from aiovblk.kernel.sysfs import Disk

from ...support.kernel_tree import KernelTree

OLD = "100 0 800 50 20 0 160 10 0 40 60"
LATER = "300 0 2400 150 70 0 560 110 3 90 320 5 0 40 25 5 75"


@pytest.fixture
def attached(tree: KernelTree) -> KernelTree:
    directory = tree.device("nbd2", "43:64", sectors=2048, thread=4242)
    tree.device("nbd3", "43:96")
    tree.process(4242, "keeper")
    tree.write(directory / "stat", f"{OLD}\n")
    tree.write(directory / "inflight", "       1        2\n")
    return tree


def test_rates_are_per_second_and_latency_per_request() -> None:
    before = Sample(10.0, [int(number) for number in OLD.split()], 4242)
    now = Sample(12.0, [int(number) for number in LATER.split()], 4242)
    rate = rates(before, now)
    assert (rate.reads, rate.writes) == (100, 25)
    assert (rate.bytes_read, rate.bytes_written) == (1600 * 512 / 2, 400 * 512 / 2)
    # 260 requests, discards and flushes included, took 300 ms together.
    assert rate.latency == pytest.approx(0.3 / 260)


def test_idle_device_has_no_latency() -> None:
    counters = [int(number) for number in LATER.split()]
    assert rates(Sample(1, counters, 1), Sample(2, counters, 1)).latency is None


def test_table_has_a_line_for_each_attached_device(attached: KernelTree) -> None:
    before = samples()
    attached.write(attached.block / "nbd2/stat", f"{LATER}\n")
    now: dict[Disk, Sample] = {2: Sample(before[2].time + 2, samples()[2].counters, 4242)}
    header, line = table(activities(before, now)).splitlines()
    assert header.split("  ")[0] == "DEVICE"
    assert line.split() == [
        *("/dev/nbd2", "1M", "100", "25", "0.4", "0.1", "3", "1.15"),
        *("4242", "(keeper)"),
    ]
    assert header.index("SERVER") == line.index("4242")


def test_device_that_was_attached_anew_has_no_rates_yet(attached: KernelTree) -> None:
    now = samples()
    before: dict[Disk, Sample] = {2: Sample(0.0, now[2].counters, 1)}
    for earlier in (before, {}):
        line = table(activities(earlier, now)).splitlines()[1]
        assert line.split()[:8] == ["/dev/nbd2", "1M", *"----", "3", "-"]


def test_device_that_left_meanwhile_is_passed_over(attached: KernelTree) -> None:
    before = samples()
    assert table(activities(before, {})).splitlines() == [table([])]
    (attached.block / "nbd2/stat").unlink()
    assert samples() == {}


def test_server_that_is_gone_is_shown(attached: KernelTree) -> None:
    (attached.proc / "4242/status").unlink()
    assert table(activities({}, samples())).endswith("  gone")


class Terminal:
    """Passes the time between two tables; ends it by Ctrl-C after some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, tables: int) -> None:
        self.slept: list[float] = []
        self._tables = tables
        monkeypatch.setattr(time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        if len(self.slept) == self._tables:
            raise KeyboardInterrupt
        self.slept.append(seconds)


def test_once_prints_one_table(
    attached: KernelTree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(monkeypatch, tables=9)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["top", "--once", "--interval", "0.5"]) == 0
    assert terminal.slept == [0.5]
    out = capsys.readouterr().out
    assert out.count("DEVICE") == out.count("/dev/nbd2") == 1
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("words", "terminal", "term", "clears"),
    [
        (["--plain"], True, "xterm", 3),
        (["--plain"], False, "xterm", 0),
        ([], False, "xterm", 0),
        ([], True, "dumb", 0),  # it cannot erase, and rich draws nothing there
        ([], True, "unknown", 0),
    ],
)
def test_tables_are_shown_until_ctrl_c(
    attached: KernelTree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    terminal: bool,
    term: str,
    clears: int,
) -> None:
    Terminal(monkeypatch, tables=3)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert cli.main(["top", *words]) == 0
    out = capsys.readouterr().out
    assert out.count("DEVICE") == 3
    assert out.count(top.CLEAR) == out.count("\x1b[H") == clears
    assert out.count("\x1b") == 2 * clears


def test_interval_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["top", "--interval", "0"])
    assert "--interval: must be a positive number of seconds" in capsys.readouterr().err


def test_terminal_without_rich_gets_plain_text(
    attached: KernelTree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Terminal(monkeypatch, tables=2)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delitem(sys.modules, "aiovblk.cli.top_screen", raising=False)
    monkeypatch.setitem(sys.modules, "rich.live", None)  # its import fails
    assert cli.main(["top"]) == 0
    out = capsys.readouterr().out
    assert out.count(top.CLEAR) == out.count("/dev/nbd2") == 2
