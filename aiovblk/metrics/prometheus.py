"""The counters as prometheus-client wants them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import core, registry

from ..dispatch import LatencyHistogram
from .definitions import DURATION, MEASURES, Measure, StatsSource, used_commands

BOUNDS = [1 << power for power in range(12, 37)]
"""Nanoseconds: 4 us to 69 s. The powers of two are where the counters' own buckets meet."""


class Collector(registry.Collector):
    """Mounts and servers as a collector; register it where the application keeps its own.

    Args:
        sources: by what becomes the label ``device``.

    """

    def __init__(self, sources: Mapping[str, StatsSource]) -> None:
        self._sources = sources

    def describe(self) -> Iterable[core.Metric]:
        """Tell a registry the names, without a look at the counters."""
        return [*map(_family, MEASURES), _durations()]

    def collect(self) -> Iterable[core.Metric]:
        """The counters, as they are now."""
        # One look at each: what a scrape shows was true at one time.
        stats = {name: source.stats for name, source in self._sources.items()}
        for measure in MEASURES:
            family = _family(measure)
            for name, each in stats.items():
                for label, value in measure.values(each):
                    family.add_metric([name, label] if measure.label else [name], value)
            yield family
        durations = _durations()
        for name, each in stats.items():
            for command, latency in used_commands(each):
                seconds = latency.total / 1e9
                durations.add_metric([name, command], _cumulative(latency), seconds)
        yield durations


def _family(measure: Measure) -> core.CounterMetricFamily | core.GaugeMetricFamily:
    name = "_".join(filter(None, ("aiovblk", measure.name, measure.unit)))
    labels = ["device", measure.label] if measure.label else ["device"]
    kind = core.CounterMetricFamily if measure.monotonic else core.GaugeMetricFamily
    return kind(name, measure.text, labels=labels)


def _durations() -> core.HistogramMetricFamily:
    name = "aiovblk_request_duration_seconds"
    return core.HistogramMetricFamily(name, DURATION, labels=["device", "command"])


def _cumulative(latency: LatencyHistogram) -> list[tuple[str, float]]:
    below = [(str(bound / 1e9), float(latency.count_below(bound))) for bound in BOUNDS]
    return [*below, ("+Inf", latency.count)]
