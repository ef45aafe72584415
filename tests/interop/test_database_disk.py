"""The example of a disk in a database, in a real one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiovblk.cli.spec import load_device
from aiovblk.testing import check_block_device

from .postgres import Postgres, postgres

pytest.importorskip("asyncpg", reason="asyncpg is missing: it is among the development tools")

pytestmark = [pytest.mark.deadline(120), pytest.mark.one_loop]

EXAMPLE = Path(__file__).parents[2] / "examples" / "database_disk.py"
MIB = 1 << 20

Opens = Callable[[], Awaitable[Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def opens(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Opens:
    """Opens the disk as the command line does, by a SPEC; the environment names the server."""
    for name, value in {"PGHOST": server.folder, "PGUSER": "postgres"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, EXAMPLE.stem, raising=False)
    return partial(load_device, f"{EXAMPLE}:disk")


async def test_disk_keeps_the_contract(opens: Opens) -> None:
    await check_block_device(opens, rounds=100)


async def test_disk_keeps_what_was_flushed_when_the_server_crashes(
    opens: Opens, server: Postgres
) -> None:
    async def crash(device: Any) -> None:
        # In a thread: the server waits for clients that are about to say who they are.
        await asyncio.to_thread(server.crash)
        device.pool.terminate()
        device.witness.terminate()
        await asyncio.to_thread(server.start)

    await check_block_device(opens, crash=crash, rounds=40)


@asynccontextmanager
async def opened(opens: Opens) -> AsyncIterator[Any]:
    """The disk, for a block."""
    disk = await opens()
    try:
        yield disk
    finally:
        await disk.unmount()


async def test_flush_fails_when_the_server_has_crashed_since_a_write(
    opens: Opens, server: Postgres
) -> None:
    async with opened(opens) as disk:
        await disk.write(0, memoryview(b"x" * 4096))
        await asyncio.to_thread(server.crash)
        await asyncio.to_thread(server.start)
        for _ in range(2):
            with pytest.raises(OSError, match="database: "):
                await disk.flush()
    async with opened(opens) as disk:
        await disk.write(0, memoryview(b"x" * 4096))
        await disk.flush()


async def test_write_and_trim_that_meet_in_the_middle_do_not_deadlock(opens: Opens) -> None:
    data = memoryview(b"x" * MIB)
    async with opened(opens) as disk:
        await disk.write(0, data)
        async with disk.pool.acquire() as other, other.transaction():
            await other.execute("SELECT FROM blocks WHERE number = 128 FOR UPDATE")
            both = asyncio.gather(disk.write(0, data), disk.trim(0, MIB))
            waiting = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
            while await disk.pool.fetchval(waiting) < 2:
                pass
        await both


async def test_what_is_trimmed_takes_no_room(opens: Opens) -> None:
    count = "SELECT count(*) FROM blocks WHERE number < 256"
    async with opened(opens) as disk:
        await disk.write(0, memoryview(b"x" * MIB))
        assert await disk.pool.fetchval(count) == 256
        await disk.trim(0, MIB)
        assert await disk.pool.fetchval(count) == 0
        assert await disk.read(0, MIB) == bytes(MIB)


async def test_failure_of_the_database_is_one_failed_request(opens: Opens) -> None:
    async with opened(opens) as disk:
        await disk.pool.execute("ALTER TABLE blocks RENAME TO others")
        with pytest.raises(OSError, match='database: relation "blocks" does not exist'):
            await disk.read(0, 4096)
        await disk.pool.execute("ALTER TABLE others RENAME TO blocks")
        assert len(await disk.read(0, 4096)) == 4096
