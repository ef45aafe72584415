"""Memory and descriptors of a thousand idle clients."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovblk.protocol import Option
from aiovblk.protocol.options import CLIENT_FLAGS, serialize_info_request, serialize_option

from ...support.network_client import LoggingDevice, clients_of, serve, using
from ...support.polling import until

pytestmark = pytest.mark.slow

CLIENTS = 1000
MAX_BYTES = 64 * 1024  # bytes of one connection; two thirds of it are those of asyncio's debug mode


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have a descriptor for both ends of each connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * CLIENTS)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_a_thousand_idle_clients_take_little_memory_and_let_others_in(
    tmp_path: Path,
) -> None:
    path = tmp_path / "socket"
    handshake = CLIENT_FLAGS.pack(3) + serialize_option(Option.GO, serialize_info_request("", []))
    clients: list[socket.socket] = []
    async with serve(LoggingDevice(), unix=path, max_connections=CLIENTS + 1) as server:
        async with using(path) as client:
            await client.read(0, 512)  # so that what is made once exists
        gc.collect()
        tracemalloc.start()
        try:
            # Their own ends are plain sockets, which take no memory of this process.
            for number in range(CLIENTS):
                sock = socket.socket(socket.AF_UNIX)
                clients.append(sock)
                sock.connect(str(path))
                sock.send(handshake)
                if number % 50 == 49:  # fewer than the listen backlog
                    await until(lambda: len(server.connections) >= len(clients))
            await until(lambda: all(each.export is not None for each in server.connections))
            gc.collect()
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert len(server.connections) == CLIENTS
        assert taken / CLIENTS < MAX_BYTES
        async with using(path) as client:
            assert await client.read(0, 512) == bytes(512)
        for sock in clients:
            sock.close()
        await asyncio.wait(list(clients_of(server)._serving))
