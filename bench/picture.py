"""The figures as bars, where matplotlib is (``pip install 'aiovblk[bench]'``)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .cases import (
    BIG_READ,
    BIG_WRITE,
    KERNEL_READ,
    KERNEL_READ_QD1,
    KERNEL_WRITE,
    READ,
    READ_QD1,
    SLOW,
    WRITE,
    Case,
)
from .summary import Summary
from .tables import FIGURES

Panel = tuple[str, str, Case]
PANELS: list[Panel] = [
    ("server_cpu", "CPU µs per request", READ),
    ("server_cpu", "CPU µs per request", WRITE),
    ("server_cpu", "CPU µs per request", BIG_READ),
    ("server_cpu", "CPU µs per request", BIG_WRITE),
    ("server_cpu", "CPU µs per request", READ_QD1),
    ("iops", "requests per second", SLOW),
]
KERNEL_PANELS: list[Panel] = [
    ("iops", "requests per second", KERNEL_READ_QD1),
    ("iops", "requests per second", KERNEL_READ),
    ("iops", "requests per second", KERNEL_WRITE),
]
COLUMNS = 3
OURS, THEIRS = "tab:green", "tab:gray"


def draw(summary: Summary, kernel: Summary, path: Path) -> bool:
    """Draw into a file, whose name says in which format; False if matplotlib is missing.

    Args:
        summary: of servers on sockets.
        kernel: of those in a test kernel's hands.
        path: the file.

    """
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        return False
    matplotlib.rcParams["svg.hashsalt"] = "aiovblk"  # the same figures make the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # letters, not their outlines
    panels = [(summary, "", *panel) for panel in PANELS if summary.figures]
    panels += [(kernel, ", in the kernel", *panel) for panel in KERNEL_PANELS if kernel.figures]
    rows = len(panels) // COLUMNS
    figure, axes = pyplot.subplots(
        nrows=rows,
        ncols=COLUMNS,
        figsize=(13, 3.5 * rows),
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for axis, panel in zip(axes.flat, panels, strict=True):
        _panel(axis, *panel)
    for row in axes:
        row[0].invert_yaxis()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return True


def _panel(axis: Any, summary: Summary, place: str, figure: str, unit: str, case: Case) -> None:
    peers = summary.peers()
    values = [summary.get(case.name, peer, figure) or 0.0 for peer in peers]
    colors = [OURS if peer.startswith("aiovblk") else THEIRS for peer in peers]
    form = FIGURES[figure][1]
    bars = axis.barh(peers, values, color=colors)
    axis.bar_label(bars, [format(value, form) if value else "" for value in values], padding=2)
    axis.margins(x=0.2)
    axis.locator_params(axis="x", nbins=5)
    axis.set_title(case.name + place)
    axis.set_xlabel(unit + (", less is better" if figure == "server_cpu" else ", more is better"))
    axis.spines[["top", "right"]].set_visible(False)
