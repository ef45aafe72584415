"""The counters of mounts and servers, for Prometheus and OpenTelemetry.

Nothing is counted here that :class:`~aiovblk.dispatch.Stats` does not count anyway, and nothing is
kept: each scrape reads the counters as they are then. What an exporter needs is imported when it is
asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..extras import extra
from .definitions import StatsSource

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

    from .prometheus import Collector

__all__ = ["StatsSource", "prometheus_collector", "register_otel"]


def prometheus_collector(sources: Mapping[str, StatsSource]) -> Collector:
    """What yields the counters to a registry of prometheus-client, which has to be told of it.

    Args:
        sources: mounts and servers by name, which becomes the label ``device``. It is looked at
            anew for each scrape, so that some may be added and removed.

    Raises:
        MissingExtraError: prometheus-client is not installed.

    """
    with extra("metrics", "counters for Prometheus"):
        from .prometheus import Collector
    return Collector(sources)


def register_otel(sources: Mapping[str, StatsSource], meter: Meter | None = None) -> None:
    """Make observable instruments of OpenTelemetry for the counters.

    Args:
        sources: as for :func:`prometheus_collector`; the name becomes the attribute ``device``.
        meter: who makes them; by default that of the provider that is set globally.

    Raises:
        MissingExtraError: opentelemetry-api is not installed.

    """
    with extra("otel", "counters for OpenTelemetry"):
        from .otel import make_instruments
    make_instruments(sources, meter)
