"""A Prometheus of its own, which scrapes one address, and what it answers to queries."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import pytest

PATIENCE = 60.0
"""Seconds until a Prometheus listens, and until it has what is asked for."""

CONFIGURATION = """\
global:
  scrape_interval: 250ms
scrape_configs:
  - job_name: aiovblk
    static_configs:
      - targets: ["{target}"]
"""

Series = dict[str, object]


def program() -> str:
    """Return the path of Prometheus: the system's, or the one that `make test-all` has unpacked."""
    general = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = os.environ.get("AIOVBLK_CACHE") or f"{general}/aiovblk"
    places = (os.environ.get("PATH", os.defpath), f"{cache}/prometheus/usr/bin")
    found = shutil.which("prometheus", path=os.pathsep.join(places))
    if found is None:
        pytest.fail("prometheus is missing: run tools/setup all, which unpacks it", pytrace=False)
    return found


class Prometheus:
    """A Prometheus that runs, and listens at ``address``."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def query(self, expression: str) -> list[Series]:
        """Return the series that an expression has now; each has ``metric`` and ``value``."""
        return await asyncio.to_thread(self._query, expression)

    def _query(self, expression: str) -> list[Series]:
        words = urllib.parse.urlencode({"query": expression})
        address = f"http://{self._address}/api/v1/query?{words}"
        try:
            with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
                result = json.load(answer)
        except urllib.error.HTTPError as exc:
            if exc.code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            return []  # it listens before it is ready
        assert result["status"] == "success", result
        series: list[Series] = result["data"]["result"]
        return series


@asynccontextmanager
async def prometheus(target: str, directory: Path) -> AsyncIterator[Prometheus]:
    """Run a Prometheus for the time of the block.

    Args:
        target: HOST:PORT to scrape, four times a second.
        directory: for its configuration and data; empty.

    """
    (directory / "prometheus.yml").write_text(CONFIGURATION.format(target=target))
    process = await asyncio.create_subprocess_exec(
        program(),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        stderr=asyncio.subprocess.PIPE,
    )
    reader: asyncio.Task[None] | None = None
    try:
        assert process.stderr is not None  # because it is a pipe
        async with asyncio.timeout(PATIENCE):
            address = await _address(process.stderr)
        # What it goes on to log is read, so that it does not wait for that.
        reader = asyncio.create_task(_drain(process.stderr))
        yield Prometheus(address)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if reader:
            await reader


async def _address(log: asyncio.StreamReader) -> str:
    """Return where it listens, which it says in its log."""
    seen = []
    async for line in log:
        seen.append(line.decode())
        if found := re.search(r'msg="Listening on" address=(\S+)', seen[-1]):
            return found[1]
    raise AssertionError("Prometheus ended:\n" + "".join(seen))


async def _drain(log: asyncio.StreamReader) -> None:
    while await log.read(1 << 16):
        pass
