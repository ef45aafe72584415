"""Worker pool of a server: clients are served by several processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
from functools import partial
from pathlib import Path

import pytest

import aiovblk
from aiovblk import Export, connect
from aiovblk.protocol import TransmissionFlag
from aiovblk.server.workers.pool import WorkerPool
from aiovblk.storage import MemoryDevice
from aiovblk.tls import client_context, server_context

from ...support.certificates import make_certificates
from ...support.network_client import connected, serve, until_left, using, worker_pids
from ...support.polling import until
from ...support.worker_services import FileOfAll, make_late

pytestmark = [pytest.mark.slow, pytest.mark.deadline(120), pytest.mark.either_loop]


async def test_clients_are_spread_over_the_workers(path: Path, image: Path) -> None:
    async with serve(partial(make_late, image), unix=path, workers=2) as server:
        async with using(path) as one, using(path) as other:
            await one.write(512, b"1" * 512)
            assert await other.read(512, 512) == b"1" * 512
            await until(lambda: {each.stats.reads for each in server.connections} == {0, 1})
            assert {each.export for each in server.connections} == {""}
            opened = image.with_suffix(".log").read_text().split()[1::2]
            assert sorted(map(int, opened)) == sorted(worker_pids(server))
            server.connections[0].stop()
            await until_left(server, but=1)
        await until_left(server)
    assert image.with_suffix(".log").read_text().count("unmount") == 2
    assert not path.exists()


async def test_several_connections_of_one_client_use_several_workers(
    path: Path, image: Path
) -> None:
    uri = f"nbd+unix:///disk?socket={path}"
    async with (
        serve({"disk": partial(FileOfAll, image)}, unix=path, workers=2) as server,
        connect(uri, connections=2) as remote,
    ):
        assert remote.info.flags & TransmissionFlag.CAN_MULTI_CONN
        await until(lambda: len(server.connections) == 2)
        await remote.write(0, b"2" * 4096)
        assert await remote.read(0, 4096) == b"2" * 4096
        # Both open their devices, the one that gets no request a while after the other.
        await until(lambda: image.with_suffix(".log").read_text().count("open") == 2)


async def test_a_lost_worker_is_replaced(
    path: Path, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(partial(FileOfAll, image), unix=path, workers=1) as server:
        [first] = worker_pids(server)
        async with using(path) as client:
            os.kill(first, signal.SIGKILL)
            assert await client.closed() == b""
        lost = "was ended by SIGKILL; 1 connections are lost with it"
        await until(lambda: lost in caplog.text)
        pool = server._clients
        assert isinstance(pool, WorkerPool)
        await until(lambda: pool._slots[0].is_alive())
        assert worker_pids(server) != [first]
        async with using(path) as client:
            assert await client.read(0, 512) == bytes(512)


async def test_requests_in_flight_are_answered_at_the_end(path: Path, image: Path) -> None:
    factory = partial(FileOfAll, image)
    async with serve(factory, unix=path, workers=2) as server, using(path) as client:
        await client.write(0, b"3" * 512)
        server.close()
        await client.closed()
        await server.wait()
    assert image.read_bytes()[:512] == b"3" * 512


async def test_each_worker_loads_the_certificates(path: Path, image: Path, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "pki")
    tls = partial(server_context, str(certificates), verify_peer=False)
    context = client_context(str(certificates))
    async with serve(partial(FileOfAll, image), unix=path, workers=2, tls=tls) as server:
        assert server.uris[0].startswith("nbds+unix:")
        async with connect(server.uris[0], tls=context, connections=1) as remote:
            assert await remote.read(0, 512) == bytes(512)


@pytest.mark.parametrize(
    ("exports", "options", "reason"),
    [
        (MemoryDevice(4096), {}, "export '' is a device of this process"),
        (Export(lambda: MemoryDevice(4096)), {}, "must be a function or a class of a module"),
        (
            partial(MemoryDevice, 4096),
            {"tls": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
            "an SSLContext of this process, which workers cannot use",
        ),
    ],
)
async def test_what_cannot_be_handed_to_workers_is_refused(
    path: Path, exports: object, options: dict[str, ssl.SSLContext], reason: str
) -> None:
    with pytest.raises(TypeError, match=reason):
        async with aiovblk.serve(exports, unix=path, workers=2, **options):  # type: ignore[arg-type]
            pass
    assert not path.exists()


async def test_what_workers_log_is_logged_here(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiovblk")
    export = partial(FileOfAll, tmp_path / "missing")
    async with serve(export, unix=path, workers=1), connected(path) as client:
        await client.greet()
        with pytest.raises((AssertionError, asyncio.IncompleteReadError)):
            await client.go()
        await until(lambda: "opening it failed" in caplog.text)
    assert "FileNotFoundError" in caplog.text
