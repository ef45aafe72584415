"""Export the counters of mounts and servers to Prometheus and OpenTelemetry.

Exporters count nothing themselves, and keep nothing: each scrape reads the counters of
:class:`~aiovblk.dispatch.Stats` as they are then. The packages that an exporter needs are imported
when it is asked for.
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
    """Make a collector for prometheus-client; register it: ``registry.register(collector)``.

    Args:
        sources: mounts and servers by name, which becomes the label ``device``. The mapping is read
            at each scrape, so entries may be added and removed at any time.

    Raises:
        MissingExtraError: prometheus-client is not installed.

    """
    with extra("metrics", "counters for Prometheus"):
        from .prometheus import Collector
    return Collector(sources)


def register_otel(sources: Mapping[str, StatsSource], meter: Meter | None = None) -> None:
    """Create observable instruments of OpenTelemetry for the counters.

    Args:
        sources: as for :func:`prometheus_collector`; the name becomes the attribute ``device``.
        meter: creates the instruments; by default a meter of the global meter provider.

    Raises:
        MissingExtraError: opentelemetry-api is not installed.

    """
    with extra("otel", "counters for OpenTelemetry"):
        from .otel import make_instruments
    make_instruments(sources, meter)
