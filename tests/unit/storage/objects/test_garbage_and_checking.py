"""Garbage collection (with clones that were deleted), and checks for damage."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from contextlib import suppress
from itertools import count
from random import Random
from typing import Any

import pytest

from aiovblk.errors import StorageError
from aiovblk.storage.objects import (
    Limits,
    check,
    checking,
    clone,
    collect_garbage,
    drop_snapshot,
    snapshot,
    snapshots,
)
from aiovblk.storage.objects.keys import checkpoint_key

from ....support.object_store import (
    CHUNK,
    SIZE,
    Bucket,
    fill,
    make_disk,
    once,
    open_disk,
)

# Garbage


async def test_what_a_crashed_writer_has_stored_and_not_committed_is_deleted(
    bucket: Bucket,
) -> None:
    client = bucket.client()
    device = await open_disk(client)
    for index in range(8):
        await fill(device, index, b"a")
    client.before = lambda request, path: client.crash() if request == "create" else None
    with pytest.raises(OSError, match="crashed"):
        await device.flush()
    with pytest.raises(OSError, match="crashed"):
        await device.unmount()
    # Until a writer opens the disk they could still become part of its next record.
    assert (await collect_garbage(bucket.client(), "disk")).objects == 0
    bucket.forget_lease()
    await (await open_disk(bucket.client())).unmount()
    found = await collect_garbage(bucket.client(), "disk", delete=False)
    assert (found.objects, found.size > 8 * CHUNK) == (8, True)
    assert len(bucket.names("disk/chunks")) == 8
    assert await collect_garbage(bucket.client(), "disk") == found
    assert bucket.names("disk/chunks") == []


async def test_garbage_of_a_disk_with_a_snapshot_that_is_damaged_stays(bucket: Bucket) -> None:
    device = await open_disk(bucket.client())
    await fill(device, 0, b"a")
    await device.flush()
    await snapshot(bucket.client(), "disk", name="one")
    await fill(device, 0, b"b")
    await device.unmount()
    await (await open_disk(bucket.client())).unmount()
    taken = (await snapshots(bucket.client(), "disk"))["one"]
    del bucket.objects[f"disk/{checkpoint_key(taken.sequence)}"]
    before = dict(bucket.objects)
    with pytest.raises(FileNotFoundError):
        await collect_garbage(bucket.client(), "disk")
    assert bucket.objects == before


async def test_garbage_is_collected_although_a_snapshot_is_dropped_meanwhile(
    bucket: Bucket,
) -> None:
    device = await open_disk(bucket.client())
    await fill(device, 0, b"a")
    await device.flush()
    await snapshot(bucket.client(), "disk", name="one")
    await fill(device, 0, b"b")
    await device.unmount()

    async def drop() -> None:
        await drop_snapshot(bucket.client(), "disk", name="one")
        await (await open_disk(bucket.client())).unmount()

    client = bucket.client()
    once(client, "find chunks", drop)
    await collect_garbage(client, "disk")
    assert len(bucket.names("disk/chunks")) == 1
    assert (await check(bucket.client(), "disk")).problems == []


async def test_garbage_is_collected_while_a_writer_stores_and_snapshots_are_taken(
    bucket: Bucket,
) -> None:
    """During each of its requests, others go on."""
    client = bucket.client()
    device = await open_disk(client)
    random = Random(1)
    kept: dict[str, bytes] = {}
    numbers = count()
    content = bytearray(SIZE)

    async def go_on() -> None:
        index, letter = random.randrange(8), bytes([random.randrange(1, 255)])
        content[index * CHUNK : (index + 1) * CHUNK] = letter * CHUNK
        await fill(device, index, letter)
        if random.random() < 0.7:
            await device.flush()
            if random.random() < 0.3:
                name = f"s{next(numbers)}"
                await snapshot(bucket.client(), "disk", name=name)
                kept[name] = bytes(content)

    for _ in range(60):
        collector = bucket.client()
        collector.before = lambda request, path: go_on() if random.random() < 0.1 else None
        await collect_garbage(collector, "disk")
        await go_on()
        if kept and random.random() < 0.5:
            name = random.choice(list(kept))
            del kept[name]
            await drop_snapshot(bucket.client(), "disk", name=name)
    await device.unmount()
    assert (await check(bucket.client(), "disk")).problems == []
    for name, data in kept.items():
        reader = await open_disk(bucket.client(), snapshot=name)
        assert bytes(await reader.read(0, SIZE)) == data
        await reader.unmount()


async def test_clone_that_is_gone_is_released_after_a_day(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    await snapshot(bucket.client(), "disk", name="one")
    await clone(bucket.client(), "disk", name="one", target="clone")
    now = time.time()
    del bucket.objects["clone/disk.json"]
    for hours, clones in ((1, 1), (25, 0)):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + hours * 3600)
        await collect_garbage(bucket.client(), "disk")
        assert len((await snapshots(bucket.client(), "disk"))["one"].clones) == clones
    await drop_snapshot(bucket.client(), "disk", name="one")


async def test_clone_that_is_there_is_not_released(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    await snapshot(bucket.client(), "disk", name="one")
    await clone(bucket.client(), "disk", name="one", target="clone")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1000 * 3600)
    await collect_garbage(bucket.client(), "disk")
    with pytest.raises(StorageError, match="needed by clones: clone"):
        await drop_snapshot(bucket.client(), "disk", name="one")


@pytest.mark.parametrize("key", [None, bytes(32)], ids=["plain", "encrypted"])
async def test_clone_is_released_although_another_disk_lies_in_its_place(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, key: bytes | None
) -> None:
    await snapshot(bucket.client(), "disk", name="one")
    await clone(bucket.client(), "disk", name="one", target="clone")
    for name in [name for name in bucket.objects if name.startswith("clone/")]:
        del bucket.objects[name]
    await make_disk(bucket, "clone", key=key)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    await collect_garbage(bucket.client(), "disk")
    assert (await snapshots(bucket.client(), "disk"))["one"].clones == {}


# Damage


async def test_check_reports_what_is_missing_once_and_what_is_damaged(bucket: Bucket) -> None:
    device = await open_disk(bucket.client())
    for index in range(3):
        await fill(device, index, b"a")
    await device.unmount()
    missing, damaged, _ = bucket.names("disk/chunks")
    del bucket.objects[missing]
    bucket.objects[damaged] = bucket.objects[damaged][:-1]
    advanced: list[int] = []
    report = await check(bucket.client(), "disk", advance=advanced.append)
    assert report.problems == [
        f"{missing[5:]} is missing",
        f"{damaged[5:]}: the object {damaged} is damaged: it has"
        f" {CHUNK + 35} bytes instead of {CHUNK + 36}",
    ]
    assert (report.chunks, sum(advanced)) == (2, 2)


async def test_check_of_a_clone_looks_at_what_its_origin_has(bucket: Bucket) -> None:
    device = await open_disk(bucket.client())
    await fill(device, 0, b"a")
    await device.unmount()
    await snapshot(bucket.client(), "disk", name="one")
    await clone(bucket.client(), "disk", name="one", target="clone")
    assert (await check(bucket.client(), "clone")).chunks == 1
    [name] = bucket.names("disk/chunks")
    del bucket.objects[name]
    assert (await check(bucket.client(), "clone")).problems == [f"{name} is missing"]


async def test_check_goes_through_all_chunks_of_a_disk_in_other_threads(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be millions; the loop may have other work."""
    device = await open_disk(bucket.client())
    await fill(device, 0, b"a")
    await device.flush()
    await snapshot(bucket.client(), "disk", name="one")
    await device.unmount()
    threads: set[threading.Thread] = set()

    def noting(call: Any) -> Any:
        def note(*arguments: Any) -> Any:
            threads.add(threading.current_thread())
            return call(*arguments)

        return note

    for name in ("stored_objects", "version_of"):
        monkeypatch.setattr(checking, name, noting(getattr(checking, name)))
    assert (await check(bucket.client(), "disk")).problems == []
    assert threads
    assert threading.main_thread() not in threads


async def test_check_reads_many_chunks_at_a_time(bucket: Bucket) -> None:
    device = await open_disk(bucket.client())
    for index in range(8):
        await fill(device, index, b"a")
    await device.unmount()
    in_flight = 0
    all_are = asyncio.Event()

    async def wait() -> None:
        nonlocal in_flight
        in_flight += 1
        if in_flight == 8:
            all_are.set()
        await all_are.wait()

    client = bucket.client()
    client.before = lambda request, path: wait() if request == "get" and "chunks" in path else None
    assert (await check(client, "disk")).chunks == 8


async def test_what_another_program_has_put_into_the_folders_is_left_alone_and_reported(
    bucket: Bucket,
) -> None:
    foreign = [
        "chunks/00000000-000000000000z",
        "chunks/readme.txt",
        "chunks/sub/00000000-0000000000001",
        "log/00000000000",
        "log/~",
        "map/0x0000000001",
        "map/zzz",
    ]
    for name in foreign:
        bucket.objects[f"disk/{name}"] = b"mine"
    for letter in (b"a", b"b"):
        device = await open_disk(bucket.client())
        await fill(device, 0, letter)
        await device.flush()
        await snapshot(bucket.client(), "disk", name=letter.decode())
        await device.unmount()
    await drop_snapshot(bucket.client(), "disk", name="a")
    await collect_garbage(bucket.client(), "disk")
    assert {f"disk/{name}" for name in foreign} <= set(bucket.objects)
    problems = (await check(bucket.client(), "disk")).problems
    assert problems == [
        f"{name} is not part of the disk; another program has put it there" for name in foreign
    ]


# Leftovers


async def test_what_the_last_flush_replaces_is_deleted_by_a_slow_store_too(bucket: Bucket) -> None:
    async def wait() -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    client = bucket.client()
    client.before = lambda request, path: wait() if path.startswith("chunks") else None
    device = await open_disk(client)
    for letter in b"abc":
        await fill(device, 0, bytes([letter]))
    await device.flush()
    await fill(device, 0, b"d")
    await device.unmount()
    assert len(bucket.names("disk/chunks")) == 1
    assert (await collect_garbage(bucket.client(), "disk")).objects == 0


@pytest.mark.parametrize("fails", ["chunks", "log", "lease", "map"])
async def test_no_task_and_no_thread_is_left_behind_whatever_fails(
    bucket: Bucket, fails: str
) -> None:
    def before(request: str, path: str) -> Any:
        if path.startswith(fails) and request != "get":
            raise OSError(errno.EIO, "the store is away")
        return asyncio.sleep(0)

    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    client = bucket.client()
    device = await open_disk(client, limits=Limits(unstored=2 * CHUNK))
    client.before = before
    with suppress(OSError):
        for index in range(8):
            await fill(device, index, b"a")
    with suppress(OSError):
        await device.unmount()
    assert asyncio.all_tasks() == tasks
    for thread in set(threading.enumerate()) - threads:  # those of this disk alone
        if thread.name.startswith("aiovblk objects"):
            thread.join(30)
            assert not thread.is_alive()
