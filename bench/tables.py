"""Tables in Markdown, which are readable on a terminal too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .asked import LIMIT, MEMORY, PYTHON, Verdict
from .attach import Mount
from .footprint import Footprint
from .observing import Observing
from .summary import Summary

OTHERS = (MEMORY, PYTHON, LIMIT)
FIGURES: dict[str, tuple[str, str]] = {
    "server_cpu": ("CPU time of the server per request, microseconds", ".1f"),
    "iops": ("Requests per second", ",.0f"),
    "megabytes": ("Megabytes per second", ",.0f"),
    "p50": ("Latency, median, microseconds", ",.0f"),
    "p99": ("Latency, 99 of 100 are faster, microseconds", ",.0f"),
    "client_cpu": ("CPU time of the client (fio) per request, microseconds", ".1f"),
}


def figure_table(summary: Summary, figure: str) -> str:
    """One figure: a row for each peer, a column for each case."""
    form = FIGURES[figure][1]

    def cell(peer: str, case: str) -> str:
        return _format(summary.get(case, peer, figure), form)

    return _by_case(summary, summary.peers(), cell)


def ratio_table(summary: Summary, figure: str, subject: str, others: Sequence[str] = OTHERS) -> str:
    """One figure of ``subject`` as parts of those of the peers that matter most."""

    def cell(peer: str, case: str) -> str:
        return _format(summary.ratio(case, subject, peer, figure), ".2f")

    return _by_case(summary, [peer for peer in others if peer in summary.peers()], cell)


def verdict_table(verdicts: dict[str, Sequence[Verdict]]) -> str:
    """What is asked, and for each subject what was found."""
    subjects = list(verdicts)
    rows = [
        [each[0].asked, *(f"{one.found}, {outcome(one)}" for one in each)]
        for each in zip(*verdicts.values(), strict=True)
    ]
    return table(["asked", *subjects], rows)


def memory_table(summary: Summary) -> str:
    """Memory of each server."""
    rows = [
        [peer, f"{each.idle / 1024:.0f}", f"{each.peak / 1024:.0f}"]
        for peer, each in summary.memory.items()
    ]
    return table(["resident MiB", "idle", "most"], rows)


def mount_table(mounts: Mapping[str, Mount]) -> str:
    """How long it takes until a device can be read."""

    def cell(seconds: float | None) -> str:
        return "" if seconds is None else f"{seconds * 1000:,.0f}"

    rows = [[peer, cell(mount.whole), cell(mount.alone)] for peer, mount in mounts.items()]
    return table(["milliseconds", "all of it", "attaching alone"], rows)


def import_table(footprint: Footprint) -> str:
    """How long an import takes."""
    rows = [[version, f"{each * 1000:.0f}"] for version, each in footprint.imports.items()]
    return table(["Python", "`import aiovblk`, milliseconds"], rows)


def observing_table(observing: Observing) -> str:
    """What the statistics and events cost."""
    rows = [
        [case, f"{cost.off:.2f}", f"{cost.on:.2f}", f"{cost.ratio:.3f}"]
        for case, cost in observing.costs.items()
    ]
    return table(["microseconds per request", "off", "on", "on / off"], rows)


def outcome(verdict: Verdict) -> str:
    """In words."""
    return {True: "met", False: "**not met**", None: "-"}[verdict.met]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column is text, the others are to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(head), f"|{rule}|", *(line(row) for row in rows)])


def _by_case(summary: Summary, peers: Sequence[str], cell: Callable[[str, str], str]) -> str:
    cases = list(summary.figures)
    rows = [[peer, *(cell(peer, case) for case in cases)] for peer in peers]
    return table(["server", *cases], rows)


def _format(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
