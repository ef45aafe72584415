"""packaging/grafana-dashboard.json: each expression has data of a server that is scraped."""

from __future__ import annotations

import asyncio
import errno
import json
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, start_http_server

import aiovblk
from aiovblk import metrics
from aiovblk.storage import MemoryDevice

from .prometheus import PATIENCE, Series, prometheus

DASHBOARD = Path(__file__).resolve().parents[2] / "packaging/grafana-dashboard.json"
BROKEN = 4096
"""The offset of a block that cannot be read."""

dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
variables = {each["name"]: each for each in dashboard["templating"]["list"]}


class Disk(MemoryDevice):
    """A disk with a block that cannot be read."""

    async def read(self, offset: int, length: int) -> bytes:
        if offset == BROKEN:
            raise OSError(errno.EIO, "broken")
        return bytes(await super().read(offset, length))


class Scrapes(CollectorRegistry):
    """The metrics, and a way to wait until they have been read once more."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._scraped = asyncio.Event()

    def collect(self) -> Iterator[Any]:
        """Called by the server of prometheus-client, in a thread of its own."""
        yield from super().collect()
        self._loop.call_soon_threadsafe(self._scraped.set)

    async def next(self) -> None:
        """Wait until they have been read once more."""
        self._scraped.clear()
        await self._scraped.wait()


@asynccontextmanager
async def busy_server() -> AsyncIterator[aiovblk.Server]:
    """A server with a client that reads, writes and flushes all the time, sometimes in vain."""

    async def work(remote: aiovblk.RemoteDevice) -> None:
        for number in range(1 << 62):
            await remote.read(0, 4096)
            await remote.write(8192, memoryview(bytes(4096)))
            await remote.flush()
            if number % 10 == 0:
                with pytest.raises(OSError, match=r"error|broken"):
                    await remote.read(BROKEN, 4096)

    async with (
        aiovblk.serve(Disk(1 << 20), host="127.0.0.1", port=0) as server,
        aiovblk.connect(server.uris[0]) as remote,
    ):
        task = asyncio.create_task(work(remote))
        try:
            yield server
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@contextmanager
def exported(server: aiovblk.Server, registry: CollectorRegistry) -> Iterator[str]:
    """Offer the metrics of a server over HTTP; yields HOST:PORT."""
    registry.register(metrics.prometheus_collector({"disk": server}))
    httpd, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield f"127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def expressions() -> list[str]:
    """What Grafana asks for, with all instances and devices chosen, over five seconds."""
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [
        each.replace("$__rate_interval", "5s")
        .replace("$device", variables["device"]["allValue"])
        .replace("$instance", variables["instance"]["allValue"])
        for each in found
    ]


def has_data(series: list[Series]) -> bool:
    """Whether there is a number among the values; a quantile of nothing is NaN."""
    values: list[Any] = [each["value"] for each in series]
    return any(math.isfinite(float(text)) for _, text in values)


@pytest.mark.one_loop
@pytest.mark.deadline(300)
async def test_each_expression_has_data_of_a_server_that_works(tmp_path: Path) -> None:
    registry = Scrapes(asyncio.get_running_loop())
    async with busy_server() as server:
        with exported(server, registry) as target:
            async with prometheus(target, tmp_path) as database:
                for expression in expressions():
                    assert "$" not in expression

                    async with asyncio.timeout(PATIENCE):
                        while not has_data(await database.query(expression)):
                            await registry.next()
                for name in ("instance", "device"):
                    series = await database.query("aiovblk_requests_in_flight")
                    labels: list[Any] = [each["metric"] for each in series]
                    assert [each[name] for each in labels] == [
                        {"instance": target, "device": "disk"}[name]
                    ]


each_panel = pytest.mark.parametrize(
    "panel", dashboard["panels"], ids=[panel["title"] for panel in dashboard["panels"]]
)


@each_panel
def test_panel_lies_beside_the_others_on_the_grid(panel: dict[str, Any]) -> None:
    def cells(position: dict[str, int]) -> set[tuple[int, int]]:
        x, y, w, h = (position[name] for name in "xywh")
        assert x + w <= 24
        return {(x + column, y + row) for column in range(w) for row in range(h)}

    for other in dashboard["panels"]:
        if other["id"] != panel["id"]:
            assert not cells(panel["gridPos"]) & cells(other["gridPos"])


@each_panel
def test_panel_asks_the_chosen_prometheus(panel: dict[str, Any]) -> None:
    for asked in (panel, *panel["targets"]):
        assert asked["datasource"]["uid"] == "${datasource}"
