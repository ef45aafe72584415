"""Backups between buckets are interrupted at every request: the earlier state, or the later."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

import pytest

from aiovblk.errors import StorageBusyError
from aiovblk.storage.backup import ObjectTarget
from aiovblk.storage.backup.numbered import snapshot_of
from aiovblk.storage.objects import snapshots

from ....support.backups import Buckets, in_small_pieces
from ....support.object_store import Client, contents, make_disk, open_disk
from ....support.sizes import by_size

STEP = by_size(3, 1)
"""Every so many requests are tried."""

pytestmark = [pytest.mark.either_loop, pytest.mark.deadline(600)]


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with in_small_pieces():
        yield


async def buckets_with(backups: int) -> Buckets:
    """Return a disk with so many backups, that has changed since."""
    buckets = Buckets()
    await make_disk(buckets.source)
    for _ in range(backups):
        present = await buckets.write()
        await buckets.backup()
        assert await buckets.verify(present)
    return buckets


async def verify_next(buckets: Buckets) -> None:
    """Verify that the next backup is right, and the only one that the source keeps a state for."""
    present = await buckets.write()
    await buckets.backup()
    assert await buckets.verify(present)
    newest = (await ObjectTarget(buckets.target.client(), "disk").backups())[-1]
    assert newest.point is not None
    kept = [snapshot_of(newest.point)]
    assert [*await snapshots(buckets.source.client(), "disk")] == kept
    problems = await ObjectTarget(buckets.target.client(), "disk").verify(lambda count: None)
    assert problems == []


@pytest.mark.parametrize("backups", [0, 1])
async def test_process_crashes_at_every_change(backups: int) -> None:
    world = await buckets_with(backups)
    present = await world.write()
    for changes in count(0, STEP):
        buckets = world.copy()
        clients = buckets.clients(crash_after=changes)
        try:
            await buckets.backup(clients)
        except OSError:
            assert clients[0].process.has_crashed
        buckets.forget_lease()
        is_new = await buckets.verify(present)
        assert await contents(buckets.source) == present
        await verify_next(buckets)
        if not clients[0].process.has_crashed:
            assert is_new
            assert changes > 10
            break


@pytest.mark.parametrize("backups", [0, 1])
async def test_each_request_fails_once(backups: int) -> None:
    world = await buckets_with(backups)
    present = await world.write()
    for number in count(1, STEP):
        buckets = world.copy()
        clients = buckets.clients()
        left = number

        def fail(request: str, path: str) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise OSError(errno.EIO, "the store is away")

        for client in clients:
            client.before = fail
        with suppress(OSError):  # it may be one that is not needed
            await buckets.backup(clients)
        for client in clients:
            client.before = lambda request, path: None
        buckets.forget_lease()  # releasing it may be what has failed
        await buckets.verify(present)
        await verify_next(buckets)
        if left > 0:
            assert number > 30
            break


async def test_runs_are_interrupted_again_and_again() -> None:
    buckets = await buckets_with(1)
    for changes in (3, 9, 14, 6, 11, 17):
        present = await buckets.write()
        clients = buckets.clients(crash_after=changes)
        with pytest.raises(OSError, match="crashed"):
            await buckets.backup(clients)
        buckets.forget_lease()
        await buckets.verify(present)
    await verify_next(buckets)


@pytest.mark.parametrize("backups", [0, 1])
async def test_disk_that_something_else_has_written_to_after_an_interruption(backups: int) -> None:
    buckets = await buckets_with(backups)
    present = await buckets.write()
    clients = buckets.clients(crash_after=11)
    with pytest.raises(OSError, match="crashed"):
        await buckets.backup(clients)
    buckets.forget_lease()
    assert not await buckets.verify(present)
    device = await open_disk(buckets.target.client())
    await device.write(0, memoryview(bytes(range(256)) * (device.size // 256)))
    await device.unmount()
    await verify_next(buckets)


async def test_disk_that_another_writer_takes_over_becomes_no_backup() -> None:
    buckets = await buckets_with(1)
    present = await buckets.write()
    clients = buckets.clients()

    async def take_over() -> None:
        clients[1].before = lambda request, path: None
        buckets.forget_lease()
        device = await open_disk(buckets.target.client())
        await device.write(0, memoryview(bytes(range(256)) * (device.size // 256)))
        await device.unmount()

    def before(request: str, path: str) -> object:
        is_committing = request == "put" and path.startswith("backups/2")
        return take_over() if is_committing else None

    clients[1].before = before
    with pytest.raises(StorageBusyError, match="another process has become"):
        await buckets.backup(clients)
    assert not await buckets.verify(present)
    await verify_next(buckets)


async def test_cancelled_backup_leaves_the_earlier_ones() -> None:
    buckets = await buckets_with(1)
    present = await buckets.write()
    clients = buckets.clients()
    reached = asyncio.Event()

    async def hang(client: Client) -> None:
        reached.set()
        await asyncio.Event().wait()

    def before(request: str, path: str) -> object:
        return hang(clients[1]) if path.startswith("backups/2") else None

    clients[1].before = before
    task = asyncio.create_task(buckets.backup(clients))
    await reached.wait()
    clients[1].before = lambda request, path: None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await buckets.verify(present)
    await verify_next(buckets)


async def test_what_was_copied_is_not_copied_again() -> None:
    buckets = await buckets_with(0)
    first, second = await buckets.write(), await buckets.write()
    assert first != second
    clients = buckets.clients()
    notes = 0

    def fail_late(request: str, path: str) -> None:
        nonlocal notes
        notes += (request, path) == ("put", "backups/unfinished")
        if notes == 4:  # one before anything is written, and two after parts
            clients[0].crash()

    clients[1].before = fail_late
    with pytest.raises(OSError, match="crashed"):
        await buckets.backup(clients)
    buckets.forget_lease()
    source, target = buckets.clients()
    reads = len(buckets.source.requests)
    await buckets.backup((source, target))
    assert await buckets.verify(second)
    assert len(buckets.source.requests) > reads
