"""A disk in PostgreSQL: `sudo -E .venv/bin/aiovblk mount examples/database_disk.py:disk`.

Shows handlers that await a remote service: each handler is a few SQL statements. The environment
names the database, as for psql: PGHOST, PGUSER, PGDATABASE and so on. `pip install asyncpg`
"""

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from typing import Self

import asyncpg

import aiovblk

# A block that was never written has no row, so a disk takes only the space of its contents. The row
# of `disk` is for `flush`.
SCHEMA = """
    CREATE TABLE IF NOT EXISTS blocks (number bigint PRIMARY KEY, contents bytea NOT NULL);
    CREATE TABLE IF NOT EXISTS disk (flushed timestamptz NOT NULL);
    INSERT INTO disk SELECT now() WHERE NOT EXISTS (SELECT FROM disk);
"""
READ = "SELECT number, contents FROM blocks WHERE number >= $1 AND number < $2"
WRITE = """
    INSERT INTO blocks SELECT * FROM unnest($1::bigint[], $2::bytea[])
    ON CONFLICT (number) DO UPDATE SET contents = excluded.contents
"""
# Rows are locked in order, as writes lock them, too, so that overlapping requests cannot deadlock.
DELETE = """
    DELETE FROM blocks WHERE number IN (
        SELECT number FROM blocks WHERE number >= $1 AND number < $2 ORDER BY number FOR UPDATE
    )
"""


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Turn a database error into an OSError: the request fails, the disk stays mounted."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        raise OSError(errno.EIO, f"database: {exc}") from exc


class DatabaseDisk(aiovblk.BlockDevice):
    """1 GiB, a row for each block. A write of several blocks is one transaction: it is atomic."""

    block_size = 4096
    blocks = 262144

    def __init__(
        self, pool: "asyncpg.Pool[asyncpg.Record]", witness: "asyncpg.Connection[asyncpg.Record]"
    ) -> None:
        self.pool = pool
        self.witness = witness
        self.flushing = asyncio.Lock()  # a connection runs one statement at a time

    @classmethod
    async def open(cls) -> Self:
        """Connect, and create the tables if they do not exist."""
        # As many requests run concurrently as the pool has connections; further ones wait for one.
        # A commit does not wait for the disk of the server; `flush` does.
        pool = await asyncpg.create_pool(
            min_size=0, max_size=16, server_settings={"synchronous_commit": "off"}
        )
        witness = await asyncpg.connect(server_settings={"synchronous_commit": "on"})
        await witness.execute(SCHEMA)
        return cls(pool, witness)

    def numbers(self, offset: int, length: int) -> tuple[int, int]:
        """Return the first block, and the one after the last."""
        return offset // self.block_size, (offset + length) // self.block_size

    async def read(self, offset: int, length: int) -> bytearray:
        """Read the rows; blocks without a row are zeroes."""
        first, end = self.numbers(offset, length)
        data = bytearray(length)
        with failures():
            for number, contents in await self.pool.fetch(READ, first, end):
                at = (number - first) * self.block_size
                data[at : at + self.block_size] = contents
        return data

    async def write(self, offset: int, data: memoryview) -> None:
        """Write the rows in one statement: one transaction, one round trip to the server."""
        # Not executemany(), which hangs if it is cancelled at the wrong moment.
        first, end = self.numbers(offset, len(data))
        blocks = [data[at : at + self.block_size] for at in range(0, len(data), self.block_size)]
        with failures():
            await self.pool.execute(WRITE, range(first, end), blocks)

    async def flush(self) -> None:
        """Commit an update, and wait for the server's log, which then has all earlier commits.

        Always on the same connection, which is older than the commits that it makes durable. A
        server that crashes loses commits and all its connections: then this fails, as it must.
        """
        async with self.flushing:
            with failures():
                await self.witness.execute("UPDATE disk SET flushed = now()")

    async def trim(self, offset: int, length: int) -> None:
        """Delete the rows."""
        with failures():
            await self.pool.execute(DELETE, *self.numbers(offset, length))

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Delete the rows; blocks without a row are zeroes."""
        await self.trim(offset, length)

    async def unmount(self) -> None:
        """Close the connections."""
        await self.witness.close()
        await self.pool.close()


disk = DatabaseDisk.open
