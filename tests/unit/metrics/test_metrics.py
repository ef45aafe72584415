"""The exporters for Prometheus and OpenTelemetry."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aiovblk import metrics
from aiovblk.dispatch import Stats

MILLISECOND = 1_000_000


class Source:
    """A source of counters."""

    def __init__(self) -> None:
        self.stats = Stats(
            bytes_read=4096,
            bytes_written=512,
            errors_by_command={"read": 1},
            in_flight=2,
            max_in_flight=9,
        )
        for milliseconds in (1, 1, 1, 100):
            self.stats.latency["read"].add(milliseconds * MILLISECOND)
        self.stats.latency["flush"].add(100_000 * MILLISECOND)


def scrape(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Each sample's value by its name and labels, through the text that Prometheus reads."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, sample.labels.pop("device"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_sees_each_counter_of_each_source() -> None:
    registry = CollectorRegistry()
    registry.register(metrics.prometheus_collector({"disk": Source(), "idle": Idle()}))
    samples = scrape(registry)
    plain = {key: value for key, value in samples.items() if "duration" not in key[0]}
    assert plain == {
        ("aiovblk_request_errors_total", "disk", "read"): 1,
        ("aiovblk_request_errors_total", "disk", "flush"): 0,
        ("aiovblk_payload_bytes_total", "disk", "read"): 4096,
        ("aiovblk_payload_bytes_total", "disk", "write"): 512,
        ("aiovblk_payload_bytes_total", "idle", "read"): 0,
        ("aiovblk_payload_bytes_total", "idle", "write"): 0,
        ("aiovblk_requests_in_flight", "disk"): 2,
        ("aiovblk_requests_in_flight", "idle"): 0,
        ("aiovblk_max_requests_in_flight", "disk"): 9,
        ("aiovblk_max_requests_in_flight", "idle"): 0,
    }


class Idle:
    """A source that nobody has asked for anything."""

    stats = Stats()


def test_prometheus_sees_latency_as_a_histogram() -> None:
    registry = CollectorRegistry()
    registry.register(metrics.prometheus_collector({"disk": Source()}))
    samples = scrape(registry)
    name = "aiovblk_request_duration_seconds"
    buckets = {
        float(key[3]): value
        for key, value in samples.items()
        if key[:3] == (f"{name}_bucket", "disk", "read")
    }
    assert list(buckets) == sorted(buckets)
    assert [buckets[bound / 1e9] for bound in (1 << 19, 1 << 20, 1 << 26, 1 << 27)] == [0, 3, 3, 4]
    assert buckets[float("inf")] == 4
    assert samples[f"{name}_count", "disk", "read"] == 4
    assert samples[f"{name}_sum", "disk", "read"] == pytest.approx(0.103)
    # Longer than the last bound.
    assert samples[f"{name}_bucket", "disk", "flush", str((1 << 36) / 1e9)] == 0
    assert samples[f"{name}_bucket", "disk", "flush", "+Inf"] == 1


def test_sources_come_and_go() -> None:
    sources = {"one": Source()}
    registry = CollectorRegistry()
    registry.register(metrics.prometheus_collector(sources))
    sources["other"] = sources.pop("one")
    assert {key[1] for key in scrape(registry)} == {"other"}


def test_opentelemetry_sees_the_same() -> None:
    reader = InMemoryMetricReader()
    with_reader = MeterProvider([reader], shutdown_on_exit=False)
    metrics.register_otel({"disk": Source()}, with_reader.get_meter("test"))
    seen = points(reader)
    with_reader.shutdown()
    assert seen["aiovblk.requests", "disk", "read"] == 4
    assert seen["aiovblk.request_errors", "disk", "read"] == 1
    assert seen["aiovblk.request_time", "disk", "read"] == pytest.approx(0.103)
    assert seen["aiovblk.payload", "disk", "write"] == 512
    assert seen["aiovblk.requests_in_flight", "disk"] == 2
    assert seen["aiovblk.max_requests_in_flight", "disk"] == 9
    assert 0.001 <= seen["aiovblk.request_duration", "disk", "read", "0.5"] <= 0.00125
    assert 0.1 <= seen["aiovblk.request_duration", "disk", "read", "0.999"] <= 0.125


def points(reader: InMemoryMetricReader) -> dict[tuple[Any, ...], float]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (metric.name, *(point.attributes or {}).values()): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint)
    }


@pytest.mark.parametrize(
    ("package", "module", "use", "extra"),
    [
        ("prometheus_client", "prometheus", metrics.prometheus_collector, "metrics"),
        ("opentelemetry.metrics", "otel", metrics.register_otel, "otel"),
    ],
)
def test_missing_package_is_named_with_its_extra(
    package: str, module: str, use: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"aiovblk.metrics.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install .aiovblk\[{extra}\]"):
        use({})


def test_nothing_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, aiovblk.metrics;"
        "print({'prometheus_client', 'opentelemetry'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
