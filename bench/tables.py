"""Tables in Markdown, which are readable on a terminal too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .asked import MEMORY, Verdict
from .attach import Mount
from .cases import CONNECTIONS, DEPTHS, HEAVY, READ, READ_QD1, Case
from .footprint import Footprint
from .observing import Observing
from .peers.ours import SUBJECT, TWO_WORKERS
from .placement import Placement
from .summary import Key, Samples


class Figure(NamedTuple):
    """How a figure is shown: its title, and what it is divided by."""

    title: str
    unit: float = 1

    def text(self, value: float | None) -> str:
        """A value with three digits or all before the point, or nothing."""
        if value is None:
            return ""
        shown = value / self.unit
        digits = 0 if shown >= 100 else 1 if shown >= 10 else 2
        return f"{shown:,.{digits}f}"


FIGURES = {
    "server_cpu": Figure("CPU time of the server per request, microseconds"),
    "iops": Figure("Thousand requests per second", 1000),
    "megabytes": Figure("Megabytes per second"),
    "p50": Figure("Latency, median, microseconds"),
    "p99": Figure("Latency, 99 of 100 are faster, microseconds"),
    "client_cpu": Figure("CPU time of the client per request, microseconds"),
}


class Column(NamedTuple):
    """One figure of one case in one placement."""

    head: str
    figure: str
    case: str
    placement: Placement


def compared(samples: Samples, columns: Sequence[Column], other: str = MEMORY) -> str:
    """A row for each peer; each cell with its ratio to ``other``.

    Rows and columns of which nothing was measured are left out; the ratio too, where ``other`` was
    not measured.
    """

    def cell(peer: str, column: Column) -> str:
        key = Key(column.case, column.placement, peer)
        value = FIGURES[column.figure].text(samples.get(key, column.figure))
        ratio = samples.ratio(key, other, column.figure)
        return f"{value} ({ratio:.2f})" if value and ratio is not None and peer != other else value

    rows = [[peer, *(cell(peer, column) for column in columns)] for peer in samples.peers()]
    return _without_empty([f"ratio to {other}", *(column.head for column in columns)], rows)


def quartile_table(samples: Samples, figure: str, placement: Placement) -> str:
    """All cases of one placement: lower quartile, median and upper quartile of a figure."""
    cases = [case for case, where in samples.columns() if where is placement]
    show = FIGURES[figure]

    def cell(peer: str, case: str) -> str:
        found = samples.quartiles(Key(case, placement, peer), figure)
        return " ".join(show.text(each) for each in found) if found else ""

    rows = [[peer, *(cell(peer, case) for case in cases)] for peer in samples.peers()]
    return _without_empty(["server", *cases], rows)


def growth_table(samples: Samples) -> str:
    """How figures change with depth, connections and workers, for nbdkit and us."""
    one, each, both = Placement.ONE_CORE, Placement.CORE_EACH, Placement.ANY_CORE
    columns = [
        ("CPU, one core, nbdkit", "server_cpu", one, MEMORY),
        ("CPU, one core, aiovblk", "server_cpu", one, SUBJECT),
        ("CPU, a core each, nbdkit", "server_cpu", each, MEMORY),
        ("CPU, a core each, aiovblk", "server_cpu", each, SUBJECT),
        ("requests, a core each, nbdkit", "iops", each, MEMORY),
        ("requests, a core each, aiovblk", "iops", each, SUBJECT),
    ]
    by_depth = sorted((READ_QD1, READ, *DEPTHS), key=lambda case: case.depth)
    rows = [
        [
            case.name,
            *(_value(samples, case, place, peer, figure) for _, figure, place, peer in columns),
        ]
        for case in (*by_depth, *CONNECTIONS)
    ]
    heavy = [
        [
            f"16k read, unpacking bz2, {how}, {both.value}",
            *("", "", ""),  # both have all cores: that is neither of the placements
            _value(samples, HEAVY, both, peer, "server_cpu"),
            "",
            _value(samples, HEAVY, both, peer, "iops"),
        ]
        for how, peer in (("one process", SUBJECT), ("two workers", TWO_WORKERS))
    ]
    return _without_empty(["", *(head for head, *_ in columns)], [*rows, *heavy])


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """What is asked, and what was found; without what was not measured."""
    rows = [[each.asked, each.found, outcome(each)] for each in verdicts if each.met is not None]
    return table(["asked", "found", ""], rows)


def memory_table(samples: Samples) -> str:
    """Memory of each server."""
    rows = [
        [peer, f"{each.idle / 1024:.0f}", f"{each.peak / 1024:.0f}"]
        for peer, each in samples.median_memory().items()
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


def _value(samples: Samples, case: Case, placement: Placement, peer: str, figure: str) -> str:
    return FIGURES[figure].text(samples.get(Key(case.name, placement, peer), figure))


def _without_empty(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    full = [row for row in rows if any(row[1:])]
    columns = [0, *(n for n in range(1, len(head)) if any(row[n] for row in full))]
    return table([head[n] for n in columns], [[row[n] for n in columns] for row in full])
