"""Prometheus exporter: the counters as a collector of prometheus-client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import core, registry

from ..dispatch import LatencyHistogram
from .definitions import DURATION, MEASURES, Measure, StatsSource, used_commands

BOUNDS = [1 << power for power in range(12, 37)]
"""Upper bounds of the exported buckets, in nanoseconds: 4 us to 69 s. Powers of two, at which the
buckets of :class:`LatencyHistogram` meet too, so that the counts are exact."""


class Collector(registry.Collector):
    """Collect the counters of mounts and servers; register it at the application's registry.

    Args:
        sources: mounts and servers by name, which becomes the label ``device``.

    """

    def __init__(self, sources: Mapping[str, StatsSource]) -> None:
        self._sources = sources

    def describe(self) -> Iterable[core.Metric]:
        """Return the metrics' names, without reading the counters."""
        return [*map(_family, MEASURES), _durations()]

    def collect(self) -> Iterable[core.Metric]:
        """Return the counters, as they are now."""
        # Each source is read once, so that its metrics in one scrape are of the same time.
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
