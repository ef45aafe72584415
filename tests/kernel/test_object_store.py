"""A file system on a disk in S3, whose server is killed at random."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from .support import Program, becomes_free, command, program, sh

pytestmark = [pytest.mark.deadline(1500), pytest.mark.one_loop, pytest.mark.newest_python]

SPEC = "s3://bucket/disk?size=128M&chunk_size=256K&compress=yes"
KILLS = 3

# Commits transactions and files until it cannot; says what is safe after each, elsewhere.
WORK = """
import os, sqlite3, subprocess, sys
place, told = sys.argv[1:]
database = sqlite3.connect(f"{place}/database")
database.execute("PRAGMA synchronous=FULL")
database.execute("CREATE TABLE IF NOT EXISTS work (number INTEGER PRIMARY KEY, text TEXT)")
database.commit()
number = database.execute("SELECT coalesce(max(number), 0) FROM work").fetchone()[0]
while True:
    number += 1
    database.execute("INSERT INTO work VALUES (?, ?)", (number, "x" * (number * 97 % 3000)))
    database.commit()
    with open(f"{place}/repository/file", "a") as file:
        file.write(f"{number}\\n")
        file.flush()
        os.fsync(file.fileno())
    os.sync()
    with open(told, "w") as file:
        file.write(str(number))
    os.replace(told, told + ".done")
"""

VERIFY = """
import sqlite3, sys
place, told = sys.argv[1:]
number = int(open(told + ".done").read())
database = sqlite3.connect(f"{place}/database")
assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
found = [row[0] for row in database.execute("SELECT number FROM work ORDER BY number")]
assert found == list(range(1, len(found) + 1)), found
assert len(found) >= number, (len(found), number)
lines = open(f"{place}/repository/file").read().split()
assert len(lines) >= number and lines[:number] == [str(each) for each in range(1, number + 1)]
"""


@pytest.fixture
async def bucket(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """An S3 server of its own process, with an empty bucket."""
    async with program("-m", "tests.support.s3_server") as server:
        port = int(await server.line())
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield


@asynccontextmanager
async def in_use(running: Program, point: Path) -> AsyncIterator[None]:
    """Its file system is mounted, and is cut off at the end of the block."""
    await sh(f"mount {running.path} {point}")
    try:
        yield
    finally:
        await sh(f"umount {point} || umount -l {point}")


async def test_what_was_synced_survives_servers_that_are_killed(
    bucket: None, tmp_path: Path
) -> None:
    random = Random(1)
    point, told = tmp_path / "mnt", tmp_path / "told"
    point.mkdir()
    async with command(SPEC, "--cache=8M", "--cache-policy=write-back") as running:
        await sh(f"mkfs.ext4 -q -E lazy_itable_init=0 {running.path}")
        async with in_use(running, point):
            git = f"git -C {point}/repository -c user.name=a -c user.email=a@b"
            await sh(f"git init -q {point}/repository && touch {point}/repository/file")
            await sh(f"{git} add . && {git} commit -q -m first && sync")
        assert await running.end(signal.SIGTERM) == 0
    for _ in range(KILLS):
        told.with_suffix(".done").unlink(missing_ok=True)
        async with command(SPEC, "--cache=8M", "--cache-policy=write-back") as running:
            async with in_use(running, point), program("-c", WORK, str(point), str(told)) as work:
                # Until it has done something, and then at any moment.
                await sh(f"while ! [ -e {told}.done ]; do sleep 0.1; done")
                await asyncio.sleep(random.random())
                await running.end(signal.SIGKILL)
                with suppress(ProcessLookupError):  # it has met an error already
                    work.process.kill()
            assert await becomes_free(running.path)
        async with command(SPEC) as running:
            await sh(f"mount {running.path} {point} && umount {point}")  # replays the journal
            await sh(f"e2fsck -fn {running.path}")
            async with in_use(running, point):
                async with program("-c", VERIFY, str(point), str(told)) as verify:
                    assert (await verify.rest(), await verify.end()) == ("", 0)
                await sh(f"git -C {point}/repository fsck --strict")
            assert await running.end(signal.SIGTERM) == 0
    async with program("-m", "aiovblk", "check", "--no-progress", SPEC) as check:
        assert (await check.rest()).endswith("all is well\n")
        assert await check.end() == 0
