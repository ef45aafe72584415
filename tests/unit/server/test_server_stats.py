"""Counters of a server, summed over all clients, present and past."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from aiovblk.protocol import Command
from aiovblk.server.workers.pool import WorkerPool
from aiovblk.storage import MemoryDevice

from ...support.network_client import PuppetDisk, serve, until_left, using, worker_pids
from ...support.polling import until
from ...support.worker_services import FileOfAll

pytestmark = pytest.mark.slow


async def test_disconnected_clients_still_count(path: Path) -> None:
    async with serve(MemoryDevice(1 << 20), unix=path) as server:
        async with using(path) as client:
            await client.write(0, bytes(4096))
        await until_left(server)
        async with using(path) as client:
            await client.read(0, 512)
            await client.call(77)
            stats = server.stats
            assert (stats.reads, stats.writes, stats.errors) == (1, 1, 1)
            assert stats.latency["write"].count == 1
    assert server.stats == stats


async def test_cancelled_requests_are_not_in_flight(path: Path) -> None:
    device = PuppetDisk()
    async with serve(device, unix=path) as server:
        async with using(path) as client:
            client.send(Command.READ, 0, 512)
            call = await device.calls.get()
            assert server.stats.in_flight == 1
        server.close(force=True)
    assert (server.stats.in_flight, server.stats.max_in_flight) == (0, 1)
    assert call.result.cancelled()


@pytest.mark.deadline(120)
async def test_counters_of_workers_are_summed_also_of_lost_ones(path: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    async with serve(partial(FileOfAll, image), unix=path, workers=2) as server:
        async with using(path) as one, using(path) as other:
            await one.write(0, bytes(4096))
            await other.read(0, 4096)
            await until(lambda: (server.stats.reads, server.stats.writes) == (1, 1))
            # Reported with the counters, or soon after.
            await until(lambda: server.stats.latency["read"].count == 1)
        await until_left(server)
        pool = server._clients
        assert isinstance(pool, WorkerPool)
        for pid in worker_pids(server):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: sum(slot.past.writes for slot in pool._slots) == 1)
        await until(lambda: all(slot.is_alive() for slot in pool._slots))
        assert (server.stats.reads, server.stats.writes) == (1, 1)
