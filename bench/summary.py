"""From the figures of single runs to quartiles, and from those to ratios."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any, NamedTuple

from .figures import MORE_IS_BETTER, Figures
from .placement import Placement


class Quartiles(NamedTuple):
    """Of one figure, over all rounds."""

    low: float
    middle: float
    high: float


class Key(NamedTuple):
    """What a figure is of."""

    case: str
    placement: Placement
    peer: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident KiB of a server: before the first request, and the most there was in all cases."""

    idle: float
    peak: float


@dataclass
class Samples:
    """What was measured: each run, in its order."""

    runs: dict[Key, list[Figures]] = field(default_factory=dict)
    memory: dict[str, list[Memory]] = field(default_factory=dict)

    def add(self, key: Key, figures: Figures) -> None:
        """Remember one run."""
        self.runs.setdefault(key, []).append(figures)

    def add_memory(self, peer: str, memory: Memory) -> None:
        """Remember what a server took while it lived."""
        self.memory.setdefault(peer, []).append(memory)

    def quartiles(self, key: Key, figure: str) -> Quartiles | None:
        """Of one figure; None where it was not measured."""
        values = [getattr(run, figure) for run in self.runs.get(key, ())]
        if not values:
            return None
        return Quartiles(*(quantile(values, part) for part in (0.25, 0.5, 0.75)))

    def get(self, key: Key, figure: str) -> float | None:
        """The better quartile of one figure.

        What disturbs a run makes it worse, never better; and the best of all runs is luck.
        """
        found = self.quartiles(key, figure)
        if found is None:
            return None
        return found.high if figure in MORE_IS_BETTER else found.low

    def ratio(self, key: Key, other: str, figure: str) -> float | None:
        """A peer's figure divided by another's, or None where either was not measured."""
        ours, theirs = self.get(key, figure), self.get(key._replace(peer=other), figure)
        return ours / theirs if ours is not None and theirs else None

    def peers(self) -> list[str]:
        """All of them, in the order in which they were measured first."""
        return list(dict.fromkeys(key.peer for key in self.runs))

    def columns(self) -> list[tuple[str, Placement]]:
        """Cases and placements, likewise."""
        return list(dict.fromkeys((key.case, key.placement) for key in self.runs))

    def median_memory(self) -> dict[str, Memory]:
        """By peer."""
        return {peer: Memory(*_medians(each)) for peer, each in self.memory.items()}

    def typical_spread(self, figure: str = "server_cpu") -> float:
        """Half of what lies between the quartiles, as a part of the median; the median of all."""
        spreads = []
        for key in self.runs:
            found = self.quartiles(key, figure)
            if found and found.middle:
                spreads.append((found.high - found.low) / 2 / found.middle)
        return median(spreads) if spreads else 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain data: every run."""
        return {
            "runs": [
                {**key._asdict(), "placement": key.placement.value, **_columns(runs)}
                for key, runs in self.runs.items()
            ],
            "memory_kib": {peer: asdict(each) for peer, each in self.median_memory().items()},
        }


def quantile(values: Iterable[float], part: float) -> float:
    """A quantile, between its neighbours where it falls between two."""
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _columns(runs: Sequence[Figures]) -> Mapping[str, list[float]]:
    return {
        each.name: [round(getattr(run, each.name), 3) for run in runs] for each in fields(Figures)
    }


def _medians(records: Sequence[Memory]) -> list[float]:
    return [median(getattr(each, name.name) for each in records) for name in fields(Memory)]
