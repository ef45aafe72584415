"""Disks in object stores in the hands of a kernel: PUTs for an fsync; servers that are killed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest

import aiovblk
from aiovblk.storage.objects import ObjectStoreDevice, create

from ..support.object_store import Bucket
from .support import MIB, Program, becomes_free, becomes_true, command, fio, program, sh

pytestmark = [pytest.mark.deadline(1500), pytest.mark.one_loop, pytest.mark.newest_python]

DISK = "s3://bucket/disk"
SPEC = f"{DISK}?size=128M&chunk_size=256K&compress=yes"
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


@asynccontextmanager
async def counted() -> AsyncIterator[tuple[aiovblk.Mount, list[str]]]:
    """A mounted disk, and a list of the objects that are put from then on, but the lease."""
    bucket = Bucket()
    client = bucket.client()
    await create(client, "disk", size=64 * MIB)
    puts: list[str] = []

    def note(request: str, path: str) -> None:
        if request in ("put", "create") and path != "lease":
            puts.append(path)

    client.before = note
    device = await ObjectStoreDevice.open(client, "disk")
    async with aiovblk.mounted(device) as mount:
        puts.clear()
        yield mount, puts


async def test_fsync_of_a_small_write_is_one_put() -> None:
    async with counted() as (mount, puts):
        await fio(mount.path, "--rw=randwrite --bs=4k --fsync=1 --number_ios=100 --size=16M")
        assert mount.stats.writes == 100
        assert mount.stats.flushes >= 99  # fio makes none after the last write
        assert len(puts) <= mount.stats.flushes


async def test_fsync_in_ext4_is_a_put_for_each_flush_of_its_journal(tmp_path: Path) -> None:
    count = 20
    async with counted() as (mount, puts):
        await sh(f"mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 {mount.path}")
        await sh(f"mount {mount.path} {tmp_path}")
        try:
            puts.clear()
            writes = f"dd if=/dev/zero of={tmp_path}/file bs=4k count={count} oflag=sync"
            await sh(writes)
            # The data and the journal's blocks, then the commit block by FUA.
            assert len(puts) <= 2 * count + 4
        finally:
            await sh(f"umount {tmp_path}")


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
                await becomes_true(told.with_suffix(".done").exists)
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
    async with program("-m", "aiovblk", "check", "--no-progress", DISK) as check:
        assert (await check.rest()).endswith("all is well\n")
        assert await check.end() == 0
