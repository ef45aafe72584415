"""Processes that read the history, sleep, and go on after others have changed the disk."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from aiovblk.errors import StorageBusyError
from aiovblk.storage.objects import (
    ObjectStoreDevice,
    check,
    clone,
    drop_snapshot,
    snapshot,
    snapshots,
)
from aiovblk.storage.objects.journal import FencedError

from ....support.object_store import (
    Bucket,
    Client,
    fill,
    letter_of,
    once,
    open_disk,
    undisturbed,
)


async def test_writer_that_learns_in_part_that_it_is_fenced_changes_nothing(
    bucket: Bucket,
) -> None:
    client = bucket.client()
    old = await open_disk(client, lease=3600)
    await fill(old, 0, b"o")
    bucket.forget_lease()
    new = await open_disk(bucket.client(), lease=3600)
    await fill(new, 0, b"n")
    await new.flush()
    second = "log/000000000003"

    def before(request: str, path: str) -> None:
        if request == "put" or path == second:
            raise OSError(errno.EIO, "the store is away")

    client.before = before
    with pytest.raises(FencedError, match="taken over"):
        await old.flush()
    client.before = undisturbed
    with pytest.raises(FencedError, match="taken over"):
        await old.flush()
    await old.unmount()
    await new.unmount()
    assert await letter_of(bucket) == b"n"


async def test_flush_of_a_fenced_writer_fails_although_an_response_to_an_earlier_was_lost(
    bucket: Bucket,
) -> None:
    client = bucket.client()
    old = await open_disk(client, lease=3600)
    await fill(old, 0, b"o")
    client.lose_a_response()
    with pytest.raises(OSError, match="no response"):
        await old.flush()
    bucket.forget_lease()
    await (await open_disk(bucket.client())).unmount()
    await fill(old, 0, b"p")
    with pytest.raises(FencedError):
        await old.flush()
    await old.unmount()


CHANGES = ["snapshot", "clone", "drop"]


async def writers_come_and_go(bucket: Bucket) -> None:
    for letter in (b"x", b"y"):
        device = await open_disk(bucket.client(), lease=3600)
        await fill(device, 0, letter)
        await device.unmount()


async def change(client: Client, what: str) -> None:
    if what == "snapshot":
        await snapshot(client, "disk", name="new")
    elif what == "drop":
        await drop_snapshot(client, "disk", name="old")
    else:
        await clone(client, "disk", name="old", target="clone")


async def assert_changed(bucket: Bucket, what: str, *others: str) -> None:
    found = await snapshots(bucket.client(), "disk")
    names = {"snapshot": {"old", "new"}, "drop": set(), "clone": {"old"}}[what]
    assert set(found) == {*names, *others}
    assert sum(len(each.clones) for each in found.values()) == (what == "clone")
    assert (await check(bucket.client(), "clone" if what == "clone" else "disk")).problems == []


@pytest.mark.parametrize("what", CHANGES)
async def test_record_where_a_checkpoint_has_deleted_another_is_added_again(
    bucket: Bucket, what: str
) -> None:
    """A process reads the history and sleeps; two writers come and go before it goes on."""
    await snapshot(bucket.client(), "disk", name="old")
    late = bucket.client()
    once(late, "create log", lambda: writers_come_and_go(bucket))
    await change(late, what)
    await (await open_disk(bucket.client())).unmount()
    await assert_changed(bucket, what)
    assert await letter_of(bucket) == b"y"
    if what == "snapshot":
        assert await letter_of(bucket, "new") == b"y"


@pytest.mark.parametrize("what", CHANGES)
async def test_record_after_which_others_follow_at_once_is_added_once(
    bucket: Bucket, what: str
) -> None:
    await snapshot(bucket.client(), "disk", name="old")

    async def go_on() -> None:
        await snapshot(bucket.client(), "disk", name="other")
        await writers_come_and_go(bucket)

    client = bucket.client()
    once(client, "find map", go_on, after="create log")
    await change(client, what)
    await assert_changed(bucket, what, "other")
    assert await letter_of(bucket) == b"y"
    if what == "snapshot":
        assert await letter_of(bucket, "new") == b"\0"


@pytest.mark.parametrize("what", CHANGES)
async def test_record_is_added_although_one_in_its_place_is_gone_before_it_is_read(
    bucket: Bucket, what: str
) -> None:
    await snapshot(bucket.client(), "disk", name="old")

    async def be_first() -> None:
        await snapshot(bucket.client(), "disk", name="other")
        once(client, "get log", lambda: writers_come_and_go(bucket))

    client = bucket.client()
    once(client, "create log", be_first)
    await change(client, what)
    await assert_changed(bucket, what, "other")


async def test_record_that_does_not_count_misleads_no_other_late_process(bucket: Bucket) -> None:
    """Of two that sleep, the second finds the record of the first, which does not count."""
    first, second = bucket.client(), bucket.client()
    once(first, "create log", lambda: writers_come_and_go(bucket))
    once(second, "create log", lambda: snapshot(first, "disk", name="first"))
    await snapshot(second, "disk", name="second")
    for name in ("first", "second"):
        assert await letter_of(bucket, name) == b"y"
    assert list(await snapshots(bucket.client(), "disk")) == ["first", "second"]


async def test_writer_is_refused_when_others_have_come_and_gone_since_it_looked(
    bucket: Bucket,
) -> None:
    late = bucket.client()
    once(late, "create log", lambda: writers_come_and_go(bucket))
    with pytest.raises(StorageBusyError, match="another has opened the disk meanwhile"):
        await open_disk(late)
    await (await open_disk(bucket.client())).unmount()
    assert await letter_of(bucket) == b"y"
    assert (await check(bucket.client(), "disk")).problems == []


async def test_writer_opens_a_disk_whose_last_writer_has_written_a_checkpoint_since_it_looked(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiovblk.storage.objects.writer._CHECKPOINT_INTERVAL", 1)
    first = await open_disk(bucket.client())
    bucket.forget_lease()

    async def end() -> None:
        for letter in (b"x", b"y"):
            await fill(first, 0, letter)
            await first.flush()
        await first.unmount()

    late = bucket.client()
    once(late, "create log", end)
    device = await open_disk(late)
    assert bytes(await device.read(0, 1)) == b"y"
    await device.unmount()


async def test_writer_opens_a_disk_although_a_snapshot_is_taken_right_after(
    bucket: Bucket,
) -> None:
    client = bucket.client()
    once(
        client,
        "find map",
        lambda: snapshot(bucket.client(), "disk", name="new"),
        after="create log",
    )
    device = await open_disk(client)
    await fill(device, 0, b"a")
    await device.unmount()
    assert await letter_of(bucket) == b"a"
    assert await letter_of(bucket, "new") == b"\0"


async def test_snapshot_is_taken_although_a_writer_comes_at_the_same_time(bucket: Bucket) -> None:
    devices: list[ObjectStoreDevice] = []

    async def open_it() -> None:
        device = await open_disk(bucket.client())
        await fill(device, 0, b"a")
        await device.flush()
        devices.append(device)

    other = bucket.client()
    once(other, "create log", open_it)
    await snapshot(other, "disk", name="one")
    await fill(devices[0], 0, b"b")
    await devices[0].unmount()
    assert await letter_of(bucket, "one") == b"a"


async def test_of_two_that_open_one_after_the_other_the_first_stays_the_writer(
    bucket: Bucket,
) -> None:
    """The second has seen that the disk is free before the first took it."""
    devices: list[ObjectStoreDevice] = []

    async def open_first() -> None:
        second.before = undisturbed
        assert "disk/lease" not in bucket.objects
        devices.append(await open_disk(bucket.client()))

    second = bucket.client()
    seen: list[str] = []

    def before(request: str, path: str) -> Any:
        if path == "lease":
            seen.append(path)
        elif seen:
            return open_first()
        return None

    second.before = before
    with pytest.raises(StorageBusyError):
        await open_disk(second)
    await fill(devices[0], 0, b"a")
    await devices[0].unmount()
    assert await letter_of(bucket) == b"a"


async def test_writer_that_lost_the_disk_before_it_had_the_lease_fails_at_once(
    bucket: Bucket,
) -> None:
    devices: list[ObjectStoreDevice] = []

    async def open_other() -> None:
        devices.append(await open_disk(bucket.client()))

    first = bucket.client()
    once(first, "get lease", open_other, after="create log")
    with pytest.raises(StorageBusyError, match="taken over by process"):
        await open_disk(first)
    await devices[0].unmount()
