"""The journal of a disk, when records are late, lost, or added by other processes."""

from __future__ import annotations

import asyncio
import errno
from random import Random
from typing import Any

import pytest

from aiovblk.errors import StorageError
from aiovblk.storage.objects import (
    drop_snapshot,
    snapshot,
    snapshots,
)

from ....support.object_store import (
    Bucket,
    failing,
    fill,
    letter_of,
    once,
    open_disk,
)

# Reading


async def flush_often(bucket: Bucket, times: int) -> None:
    device = await open_disk(bucket.client())
    for number in range(times):
        await fill(device, 0, bytes([number]))
        await device.flush()
    await device.unmount()


async def test_records_are_read_many_at_a_time_and_applied_in_order(bucket: Bucket) -> None:
    await flush_often(bucket, 100)
    in_flight, most = 0, 0

    async def wait(path: str) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        for _ in range(Random(path).randint(1, 9)):  # so that they end in any order
            await asyncio.sleep(0)
        in_flight -= 1

    client = bucket.client()
    client.before = lambda request, path: wait(path) if path.startswith("log/") else None
    device = await open_disk(client, read_only=True)
    assert bytes(await device.read(0, 1)) == bytes([99])
    assert 16 <= most <= 32
    await device.unmount()


async def test_record_that_is_missing_among_many_is_noticed(bucket: Bucket) -> None:
    await flush_often(bucket, 100)
    missing = bucket.names("disk/log")[50]
    del bucket.objects[missing]
    with pytest.raises(StorageError, match=f"damaged: {missing[5:]} is missing"):
        await open_disk(bucket.client(), read_only=True)


async def test_history_is_read_however_often_it_goes_on_meanwhile(bucket: Bucket) -> None:
    names = [f"{number:02}" for number in range(30)]
    left = iter(names)

    async def go_on() -> None:
        if (name := next(left, None)) is not None:
            await snapshot(bucket.client(), "disk", name=name)

    client = bucket.client()
    client.before = lambda request, path: go_on() if (request, path) == ("find", "log") else None
    assert list(await snapshots(client, "disk")) == names


async def test_reader_is_not_misled_by_a_record_in_the_place_of_one_deleted_by_a_checkpoint(
    bucket: Bucket,
) -> None:
    """It has listed the checkpoints, and found none, before all that happens."""
    reader, late = bucket.client(), bucket.client()

    async def go_on() -> None:
        await snapshot(bucket.client(), "disk", name="first")
        await (await open_disk(bucket.client())).unmount()
        late.before = failing("find map")

    async def be_late() -> None:
        once(late, "create log", go_on)
        with pytest.raises(OSError, match="away"):
            await snapshot(late, "disk", name="late")

    once(reader, "find log", be_late)
    assert list(await snapshots(reader, "disk")) == ["first"]


# What snapshots need


async def test_snapshot_that_takes_the_name_of_another_is_kept_by_the_writer(
    bucket: Bucket,
) -> None:
    device = await open_disk(bucket.client())
    await fill(device, 0, b"a")
    await device.flush()
    await snapshot(bucket.client(), "disk", name="latest")
    for letter in (b"b", b"c"):
        await fill(device, 0, letter)
        await device.flush()
    await drop_snapshot(bucket.client(), "disk", name="latest")
    await snapshot(bucket.client(), "disk", name="latest")
    await fill(device, 0, b"d")
    await device.unmount()
    assert await letter_of(bucket, "latest") == b"c"
    assert await letter_of(bucket) == b"d"


@pytest.mark.parametrize("request_", ["put chunks", "create log"])
async def test_snapshot_is_kept_by_a_writer_that_learns_of_it_while_a_flush_fails(
    bucket: Bucket, request_: str
) -> None:
    client = bucket.client()
    device = await open_disk(client)
    await fill(device, 0, b"a")
    await device.flush()
    await snapshot(bucket.client(), "disk", name="one")
    await fill(device, 0, b"b")
    client.before = failing(request_) if request_ == "put chunks" else _failing_second()
    with pytest.raises(OSError, match="away"):
        await device.flush()
    await device.unmount()
    assert await letter_of(bucket, "one") == b"a"


def _failing_second() -> Any:
    """Let a writer find another's record, and fail its next attempt."""
    made: list[str] = []

    def before(request: str, path: str) -> None:
        if request == "create":
            made.append(path)
            if len(made) == 2:
                raise OSError(errno.EIO, "the store is away")

    return before


async def test_snapshot_of_a_process_that_died_is_stored_though_the_first_attempt_fails(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiovblk.storage.objects.writer._CHECKPOINT_INTERVAL", 1)
    # The compactor stores maps, too, and must not take the failure that is for the flush.
    monkeypatch.setattr("aiovblk.storage.objects.compactor.Compactor.notify", lambda _: None)
    client = bucket.client()
    device = await open_disk(client)
    await fill(device, 0, b"a")
    await device.flush()
    other = bucket.client()
    other.before = failing("put map")
    with pytest.raises(OSError, match="away"):
        await snapshot(other, "disk", name="one")
    client.before = failing("put map")
    await fill(device, 0, b"b")
    with pytest.raises(OSError, match="away"):
        await device.flush()
    await device.unmount()
    assert await letter_of(bucket, "one") == b"a"
