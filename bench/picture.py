"""The figures as bars, where matplotlib is (``pip install 'aiovblk[bench]'``)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .cases import BIG_READ, BIG_WRITE, READ, READ_QD1, SLOW, WRITE, Case
from .summary import Summary
from .tables import FIGURES

PANELS: list[tuple[str, str, Case]] = [
    ("server_cpu", "CPU µs per request", READ),
    ("server_cpu", "CPU µs per request", WRITE),
    ("server_cpu", "CPU µs per request", BIG_READ),
    ("server_cpu", "CPU µs per request", BIG_WRITE),
    ("server_cpu", "CPU µs per request", READ_QD1),
    ("iops", "requests per second", SLOW),
]
OURS, THEIRS = "tab:green", "tab:gray"


def draw(summary: Summary, path: Path) -> bool:
    """Draw into a file, whose name says in which format; False if matplotlib is missing."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        return False
    matplotlib.rcParams["svg.hashsalt"] = "aiovblk"  # the same figures make the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # letters, not their outlines
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), sharey=True, layout="constrained")
    for axis, panel in zip(axes.flat, PANELS, strict=True):
        _panel(axis, summary, *panel)
    axes[0][0].invert_yaxis()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return True


def _panel(axis: Any, summary: Summary, figure: str, unit: str, case: Case) -> None:
    peers = summary.peers()
    values = [summary.get(case.name, peer, figure) or 0.0 for peer in peers]
    colors = [OURS if peer.startswith("aiovblk") else THEIRS for peer in peers]
    form = FIGURES[figure][1]
    bars = axis.barh(peers, values, color=colors)
    axis.bar_label(bars, [format(value, form) if value else "" for value in values], padding=2)
    axis.margins(x=0.2)
    axis.locator_params(axis="x", nbins=5)
    axis.set_title(case.name)
    axis.set_xlabel(unit + (", less is better" if figure == "server_cpu" else ", more is better"))
    axis.spines[["top", "right"]].set_visible(False)
