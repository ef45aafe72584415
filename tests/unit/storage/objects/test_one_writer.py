"""Only one writer at a time: the lease keeps a second one out, and a late one is fenced."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiovblk.errors import StorageBusyError
from aiovblk.storage.objects import ObjectStoreDevice
from aiovblk.storage.objects.journal import FencedError

from ....support.object_store import (
    BLOCK,
    CHUNK,
    Bucket,
    make_disk,
    open_disk,
    opened,
    write,
)

SIZE = 20 * CHUNK + 2 * BLOCK


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


async def make(bucket: Bucket, **options: Any) -> None:
    await make_disk(bucket, size=SIZE, **options)


async def test_second_writer_is_refused_while_the_first_lives(bucket: Bucket) -> None:
    await make(bucket)
    async with opened(bucket.client(), lease=0.03):
        with pytest.raises(StorageBusyError, match=r"in use: process \d+ on .* writes to it"):
            await open_disk(bucket.client(), lease=0.03)


async def test_disk_of_a_writer_that_crashed_is_free_when_its_lease_is_over(
    bucket: Bucket,
) -> None:
    await make(bucket)
    client = bucket.client()
    crashed = await open_disk(client, lease=0.05)
    client.crash()
    async with opened(bucket.client(), lease=0.05):
        pass
    with pytest.raises(OSError, match="crashed"):
        await write(crashed, 0, bytes(BLOCK))
        await crashed.unmount()


async def test_writer_that_lost_the_disk_can_not_change_it(bucket: Bucket) -> None:
    await make(bucket)
    old = await open_disk(bucket.client(), lease=3600)
    await write(old, 0, b"a" * BLOCK)
    await old.flush()
    bucket.forget_lease()  # as if it had slept for an hour
    async with opened(bucket.client()) as new:
        await write(new, BLOCK, b"n" * BLOCK)
        await new.flush()
        await write(old, 0, b"late" * (BLOCK // 4))
        with pytest.raises(FencedError, match="taken over by process"):
            await old.flush()
        for request in (old.read(0, BLOCK), old.flush(), old.trim(0, CHUNK)):
            with pytest.raises(StorageBusyError, match="what was not flushed is lost"):
                await request
        await old.unmount()
        assert bytes(await new.read(0, 2 * BLOCK)) == b"a" * BLOCK + b"n" * BLOCK
    async with opened(bucket.client()) as device:
        assert bytes(await device.read(0, 2 * BLOCK)) == b"a" * BLOCK + b"n" * BLOCK


async def test_writer_that_slept_through_many_others_is_fenced(bucket: Bucket) -> None:
    await make(bucket)
    old = await open_disk(bucket.client(), lease=3600)
    await write(old, 0, b"a" * BLOCK)
    for _ in range(3):
        bucket.forget_lease()
        async with opened(bucket.client()) as new:
            for letter in b"xyz":
                await write(new, 0, bytes([letter]) * BLOCK)
                await new.flush()
    with pytest.raises(FencedError):
        await old.flush()
    await old.unmount()


async def test_writer_notices_when_it_renews_the_lease_that_the_disk_is_lost(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    await make(bucket)
    client = bucket.client()
    old = await open_disk(client, lease=0.03)
    is_taken_over = asyncio.Event()

    async def renew_later(request: str, path: str) -> None:
        if path == "lease":
            await is_taken_over.wait()

    client.before = renew_later
    bucket.forget_lease()
    async with opened(bucket.client(), lease=3600):
        is_taken_over.set()
        with pytest.raises(StorageBusyError, match="taken over"):
            while True:
                await old.read(0, BLOCK)
                await asyncio.sleep(0.001)
        await old.unmount()
    assert "taken over by process" in caplog.text


async def test_of_two_that_open_at_the_same_time_one_is_refused(bucket: Bucket) -> None:
    await make(bucket)
    clients = [bucket.client(), bucket.client()]
    meeting = asyncio.Event()
    there: list[str] = []

    async def meet(request: str, path: str) -> None:
        if request != "create" or not path.startswith("log/"):
            return
        there.append(path)
        if len(there) == 2:
            meeting.set()
        await meeting.wait()

    for client in clients:
        client.before = meet
    results = await asyncio.gather(
        *(open_disk(client) for client in clients), return_exceptions=True
    )
    devices = [each for each in results if isinstance(each, ObjectStoreDevice)]
    assert len(devices) == 1
    assert sum(isinstance(each, FencedError) for each in results) == 1
    await devices[0].unmount()
