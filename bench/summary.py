"""From the figures of single runs to medians, and from those to ratios."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Figures:
    """What a server did in one case: of one run, or the medians of several.

    CPU times and latencies are microseconds, CPU times per request; ``megabytes`` are 10**6 bytes
    per second.
    """

    server_cpu: float
    client_cpu: float
    iops: float
    megabytes: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident KiB of a server: before the first request, and the most there was in all cases."""

    idle: float
    peak: float


@dataclass
class Summary:
    """Medians by case and peer."""

    figures: Mapping[str, Mapping[str, Figures]]
    memory: Mapping[str, Memory]

    def get(self, case: str, peer: str, figure: str) -> float | None:
        """One figure, or None where it was not measured."""
        found = self.figures.get(case, {}).get(peer)
        return None if found is None else float(getattr(found, figure))

    def ratio(self, case: str, peer: str, other: str, figure: str) -> float | None:
        """A peer's figure divided by another's, or None where either was not measured."""
        ours, theirs = self.get(case, peer, figure), self.get(case, other, figure)
        return ours / theirs if ours is not None and theirs else None

    def peers(self) -> list[str]:
        """All of them, in the order in which they were measured first."""
        return list(dict.fromkeys(peer for case in self.figures.values() for peer in case))

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "figures": {
                case: {peer: asdict(each) for peer, each in peers.items()}
                for case, peers in self.figures.items()
            },
            "memory_kib": {peer: asdict(each) for peer, each in self.memory.items()},
        }


NOTHING = Summary({}, {})


class Samples:
    """What was measured so far."""

    def __init__(self) -> None:
        self._figures: dict[str, dict[str, list[Figures]]] = {}
        self._memory: dict[str, list[Memory]] = {}

    def add(self, case: str, peer: str, figures: Figures) -> None:
        """Remember one run."""
        self._figures.setdefault(case, {}).setdefault(peer, []).append(figures)

    def add_memory(self, peer: str, memory: Memory) -> None:
        """Remember what a server took in one round."""
        self._memory.setdefault(peer, []).append(memory)

    def summary(self) -> Summary:
        """The medians of all that was remembered."""
        return Summary(
            {
                case: {peer: Figures(*medians(runs)) for peer, runs in peers.items()}
                for case, peers in self._figures.items()
            },
            {peer: Memory(*medians(rounds)) for peer, rounds in self._memory.items()},
        )

    def spread(self, case: str, peer: str, figure: str = "server_cpu") -> float:
        """How far a figure was from its median in the worst of all runs, as a part."""
        values = [getattr(run, figure) for run in self._figures[case][peer]]
        middle = median(values)
        return max(abs(each - middle) for each in values) / middle if middle else 0.0

    def typical_spread(self, figure: str = "server_cpu") -> float:
        """The median of all spreads."""
        spreads = [
            self.spread(case, peer, figure)
            for case in self._figures
            for peer in self._figures[case]
        ]
        return median(spreads) if spreads else 0.0


def medians(records: Sequence[Figures] | Sequence[Memory]) -> Iterable[float]:
    """The median of each field, in the order of the fields."""
    return [
        median(getattr(record, field.name) for record in records) for field in fields(records[0])
    ]
