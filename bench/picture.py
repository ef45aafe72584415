"""The figures as bars, where matplotlib is (``pip install 'aiovblk[bench]'``)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .asked import LIMIT, MEMORY, PYTHON
from .cases import READ, READ_QD1, WRITE, Case
from .peers.ours import SUBJECT
from .placement import BOTH, Placement
from .summary import Key, Samples

PEERS = (LIMIT, MEMORY, SUBJECT, PYTHON, "qemu-nbd, file in memory")
"""From which few are drawn: the page has the others."""
CASES = {READ: "4k read, depth 64", WRITE: "4k write, depth 64", READ_QD1: "4k read, depth 1"}
OURS, THEIRS = "tab:green", "tab:gray"

Bars = list[tuple[str, float]]


def bars(samples: Samples, case: Case, placement: Placement) -> Bars:
    """Peers and their CPU time per request; without those that were not measured."""
    found = ((peer, samples.get(Key(case.name, placement, peer), "server_cpu")) for peer in PEERS)
    return [(peer, value) for peer, value in found if value is not None]


def draw(samples: Samples, path: Path) -> bool:
    """Draw into a file, whose name says in which format; False if matplotlib is missing.

    Args:
        samples: of servers on sockets; a case and placement without any has no panel.
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
    rows = [place for place in BOTH if any(bars(samples, case, place) for case in CASES)]
    figure, axes = pyplot.subplots(
        nrows=max(len(rows), 1),
        ncols=len(CASES),
        figsize=(12, 2.3 * max(len(rows), 1)),
        squeeze=False,
        layout="constrained",
    )
    for line, place in zip(axes, rows, strict=False):
        for axis, (case, title) in zip(line, CASES.items(), strict=True):
            _panel(axis, f"{title}, {place.value}", bars(samples, case, place))
    figure.suptitle("CPU time of the server per request, microseconds: less is better", fontsize=11)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return True


def _panel(axis: Any, title: str, found: Bars) -> None:
    values = [value for _, value in found]
    colors = [OURS if peer == SUBJECT else THEIRS for peer, _ in found]
    drawn = axis.barh([peer for peer, _ in found], values, color=colors)
    axis.bar_label(drawn, [f"{value:.1f}" for value in values], padding=2, fontsize=8)
    axis.margins(x=0.2)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
