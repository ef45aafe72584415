"""A disk in PostgreSQL: `sudo -E .venv/bin/aiovblk mount examples/database_disk.py:disk`.

How to back a disk with what you await: the handlers are the few statements that a block needs.
Which database it is, the environment tells, as it tells psql: PGHOST, PGUSER, PGDATABASE and so on.
`pip install asyncpg`
"""

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from typing import Self

import asyncpg

import aiovblk

# A block that was never written has no row, and so a disk costs what is in it. The row of `disk`
# has another task: see `flush`.
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
# In order, as writes are, too: two that overlap then wait for each other, but never in a circle.
DELETE = """
    DELETE FROM blocks WHERE number IN (
        SELECT number FROM blocks WHERE number >= $1 AND number < $2 ORDER BY number FOR UPDATE
    )
"""


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Have what the database says fail one request; the disk lives on."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        raise OSError(errno.EIO, f"database: {exc}") from exc


class DatabaseDisk(aiovblk.BlockDevice):
    """1 GiB, a row for each block. A write of many blocks is one transaction: all of it or none."""

    block_size = 4096
    blocks = 262144

    def __init__(
        self, pool: "asyncpg.Pool[asyncpg.Record]", witness: "asyncpg.Connection[asyncpg.Record]"
    ) -> None:
        self.pool = pool
        self.witness = witness
        self.flushing = asyncio.Lock()  # a connection does one thing at a time

    @classmethod
    async def open(cls) -> Self:
        """Connect, and make the tables if there are none."""
        # As many requests run side by side as there are connections; further ones wait for one.
        # A commit does not wait for the disk of the server: that is what `flush` is for.
        pool = await asyncpg.create_pool(
            min_size=0, max_size=16, server_settings={"synchronous_commit": "off"}
        )
        witness = await asyncpg.connect(server_settings={"synchronous_commit": "on"})
        await witness.execute(SCHEMA)
        return cls(pool, witness)

    def numbers(self, offset: int, length: int) -> tuple[int, int]:
        """Tell the first block, and the one after the last."""
        return offset // self.block_size, (offset + length) // self.block_size

    async def read(self, offset: int, length: int) -> bytearray:
        """Read the rows; what has none is zeroes."""
        first, end = self.numbers(offset, length)
        data = bytearray(length)
        with failures():
            for number, contents in await self.pool.fetch(READ, first, end):
                at = (number - first) * self.block_size
                data[at : at + self.block_size] = contents
        return data

    async def write(self, offset: int, data: memoryview) -> None:
        """Write the rows, in one statement: one transaction, and one trip to the server."""
        # Not by executemany(), which hangs when it is cancelled at the wrong moment.
        first, end = self.numbers(offset, len(data))
        blocks = [data[at : at + self.block_size] for at in range(0, len(data), self.block_size)]
        with failures():
            await self.pool.execute(WRITE, range(first, end), blocks)

    async def flush(self) -> None:
        """Commit something, and wait for the server's log: all earlier commits come before it.

        Always on the same connection, which is older than what it is to make durable. A server that
        crashes loses commits, and all its connections: then this fails, and promises nothing.
        """
        async with self.flushing:
            with failures():
                await self.witness.execute("UPDATE disk SET flushed = now()")

    async def trim(self, offset: int, length: int) -> None:
        """Delete the rows."""
        with failures():
            await self.pool.execute(DELETE, *self.numbers(offset, length))

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Delete the rows; without them, the blocks are zeroes."""
        await self.trim(offset, length)

    async def unmount(self) -> None:
        """Give the connections back."""
        await self.witness.close()
        await self.pool.close()


disk = DatabaseDisk.open
