"""OpenTelemetry exporter: the counters as observable instruments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter

from ..dispatch import Stats
from .definitions import DURATION, MEASURES, Measure, StatsSource, used_commands

QUANTILES = (0.5, 0.99, 0.999)

Observe = Callable[[CallbackOptions], Iterable[Observation]]


def make_instruments(sources: Mapping[str, StatsSource], meter: Meter | None) -> None:
    """Create an instrument for each metric; the provider's metric readers call them."""
    meter = meter or get_meter("aiovblk")
    for measure in MEASURES:
        make = (
            meter.create_observable_counter
            if measure.monotonic
            else meter.create_observable_up_down_counter
        )
        make(
            f"aiovblk.{measure.name}",
            [_observe_measure(sources, measure)],
            unit="By" if measure.unit == "bytes" else "{request}",
            description=measure.text,
        )
    # OpenTelemetry has no observable histogram. Instead of one, there are its parts, count and sum,
    # and the quantiles that it would serve for.
    meter.create_observable_counter(
        "aiovblk.requests",
        [_observe_each(sources, _requests)],
        unit="{request}",
        description="Requests that were answered",
    )
    meter.create_observable_counter(
        "aiovblk.request_time",
        [_observe_each(sources, _time)],
        unit="s",
        description=f"{DURATION}, added up",
    )
    meter.create_observable_gauge(
        "aiovblk.request_duration",
        [_observe_each(sources, _quantiles)],
        unit="s",
        description=f"{DURATION}, since the beginning: quantiles",
    )


Found = Iterable[tuple[float, dict[str, str]]]


def _observe_each(sources: Mapping[str, StatsSource], find: Callable[[Stats], Found]) -> Observe:
    """Make a callback that observes each source, with its name as the attribute ``device``."""

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for name, source in sources.items():
            for value, attributes in find(source.stats):
                yield Observation(value, {"device": name, **attributes})

    return observe


def _observe_measure(sources: Mapping[str, StatsSource], measure: Measure) -> Observe:
    def find(stats: Stats) -> Found:
        for label, value in measure.values(stats):
            yield value, {measure.label: label} if measure.label else {}

    return _observe_each(sources, find)


def _requests(stats: Stats) -> Found:
    return [(latency.count, {"command": command}) for command, latency in used_commands(stats)]


def _time(stats: Stats) -> Found:
    return [
        (latency.total / 1e9, {"command": command}) for command, latency in used_commands(stats)
    ]


def _quantiles(stats: Stats) -> Found:
    for command, latency in used_commands(stats):
        for quantile in QUANTILES:
            yield latency.quantile(quantile), {"command": command, "quantile": str(quantile)}
