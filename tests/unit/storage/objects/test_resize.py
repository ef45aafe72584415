"""Sizes of a disk in an object store that change: what was cut off is gone for good."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest

from aiovblk.storage.objects import Limits, ObjectStoreDevice, check
from aiovblk.storage.objects.view import DiskView

from ....support.object_store import (
    BLOCK,
    CHUNK,
    SIZE,
    Bucket,
    Client,
    contents,
    failing,
    fill,
    open_disk,
    undisturbed,
    write,
)


def resize(device: ObjectStoreDevice, size: int) -> None:
    device.blocks = size // BLOCK


async def reopened(bucket: Bucket) -> bytes:
    assert (await check(bucket.client(), "disk")).problems == []
    return await contents(bucket)


@pytest.mark.parametrize("kept", [2 * CHUNK, 2 * CHUNK + BLOCK])
async def test_what_was_cut_off_between_two_flushes_reads_as_zeroes(
    bucket: Bucket, kept: int
) -> None:
    device = await open_disk(bucket.client())
    await write(device, 0, b"a" * SIZE)
    await device.flush()
    resize(device, kept)
    resize(device, SIZE)
    expected = b"b" * BLOCK + b"a" * (kept - BLOCK) + bytes(SIZE - kept)
    await write(device, 0, b"b" * BLOCK)
    assert bytes(await device.read(0, SIZE)) == expected
    await device.unmount()
    assert await reopened(bucket) == expected


@pytest.mark.parametrize("kept", [CHUNK, CHUNK + BLOCK])
async def test_what_was_cut_off_reads_as_zeroes_when_the_disk_is_larger_again(
    bucket: Bucket, kept: int
) -> None:
    for size in (SIZE, kept, SIZE):
        device = await open_disk(bucket.client())
        if size == SIZE == device.size:
            await write(device, 0, b"a" * SIZE)
        resize(device, size)
        await device.unmount()
    assert await reopened(bucket) == b"a" * kept + bytes(SIZE - kept)


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_cut_off_while_it_is_stored_does_not_come_back(
    bucket: Bucket, fails: bool
) -> None:
    client = bucket.client()
    device = await open_disk(client)
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        await goes_on.wait()
        if fails:
            client.before = undisturbed
            raise OSError(errno.EIO, "the store is away")

    def before(request: str, path: str) -> Any:
        return wait() if path.startswith("chunks/00000005") else None

    client.before = before
    await write(device, 5 * CHUNK, b"a" * CHUNK)
    flush = asyncio.create_task(device.flush())
    await begun.wait()
    resize(device, 2 * CHUNK)
    resize(device, SIZE)
    assert bytes(await device.read(0, SIZE)) == bytes(SIZE)
    goes_on.set()
    await asyncio.gather(flush, return_exceptions=True)
    assert bytes(await device.read(0, SIZE)) == bytes(SIZE)
    await device.unmount()
    assert await reopened(bucket) == bytes(SIZE)


class Held:
    """Requests that are held back until they are let go."""

    def __init__(self, client: Client, word: str) -> None:
        self.begun, self.let_go = asyncio.Event(), asyncio.Event()
        self._word = word
        client.before = self._before

    async def _wait(self) -> None:
        self.begun.set()
        await self.let_go.wait()

    def _before(self, request: str, path: str) -> Any:
        return self._wait() if self._word in f"{request} {path}" else None


async def store_in_background(device: ObjectStoreDevice, index: int, held: Held) -> None:
    """Fill a chunk, and wait until it is being stored."""
    for each in (index, 0, 1, 2, 3, 4):
        await fill(device, each, b"n")
    await held.begun.wait()


LAST = SIZE // CHUNK - 1


@pytest.mark.parametrize("said", [True, False])
async def test_blocks_under_a_chunk_that_is_cut_off_while_it_is_stored_do_not_come_back(
    bucket: Bucket, said: bool
) -> None:
    client = bucket.client()
    device = await open_disk(client)
    await write(device, LAST * CHUNK, b"o" * BLOCK)
    if said:
        await device.flush()
    else:  # the next record says it again
        client.before = failing("create log")
        with pytest.raises(OSError, match="away"):
            await device.flush()
    held = Held(client, f"put chunks/{LAST:08x}")
    await store_in_background(device, LAST, held)
    resize(device, LAST * CHUNK)
    held.let_go.set()
    await device.flush()
    resize(device, SIZE)
    assert bytes(await device.read(LAST * CHUNK, CHUNK)) == bytes(CHUNK)
    await device.unmount()
    assert (await reopened(bucket))[LAST * CHUNK :] == bytes(CHUNK)


async def test_flush_does_not_wait_for_extents_that_were_cut_off(bucket: Bucket) -> None:
    client = bucket.client()
    limits = Limits(extents=1, inline_size=0, segment_size=BLOCK)
    device = await open_disk(client, limits=limits)
    assert device._writer is not None
    assert device._writer._compaction is not None
    device._writer._compaction.cancel()
    for block in (0, 1, 3):
        await write(device, LAST * CHUNK + block * BLOCK, b"o" * BLOCK)
        await device.flush()
    extents = device._buffer.chunk_store.view.extents
    assert extents.count > 2 * limits.extents
    held = Held(client, f"put chunks/{LAST:08x}")
    await store_in_background(device, LAST, held)
    resize(device, LAST * CHUNK)
    held.let_go.set()
    assert not extents.count
    await device.flush()
    await device.unmount()
    assert len(await reopened(bucket)) == LAST * CHUNK


async def test_what_is_cut_off_while_a_record_fails_does_not_come_back(bucket: Bucket) -> None:
    client = bucket.client()
    device = await open_disk(client)
    await write(device, 0, b"a" * SIZE)
    await device.flush()
    client.before = failing("create log")
    resize(device, CHUNK)
    with pytest.raises(OSError, match="away"):
        await device.flush()
    resize(device, SIZE)
    await device.unmount()
    assert await reopened(bucket) == b"a" * CHUNK + bytes(SIZE - CHUNK)


async def test_size_is_stored_although_the_response_to_another_was_lost(bucket: Bucket) -> None:
    client = bucket.client()
    device = await open_disk(client)
    client.lose_a_response()
    resize(device, 2 * SIZE)
    with pytest.raises(OSError, match="no response"):
        await device.flush()
    resize(device, SIZE)
    await device.unmount()
    assert len(await reopened(bucket)) == SIZE


async def test_handlers_of_what_is_cut_off_meanwhile_come_to_an_end(bucket: Bucket) -> None:
    device = await open_disk(bucket.client())
    resize(device, CHUNK)
    for offset in (SIZE - CHUNK, SIZE - BLOCK):
        await device.write_zeroes(offset, BLOCK, may_trim=True)
        await device.extents(offset, BLOCK)
        assert bytes(await device.read(offset, BLOCK)) == bytes(BLOCK)
    await device.unmount()


# A crash after a record that has the new size, and not what was dirty then

END = LAST * CHUNK + 2 * BLOCK


async def crash_after_a_record(device: ObjectStoreDevice, client: Client) -> None:
    """Add a record as the compactor does, without a flush, and crash."""
    assert device._writer is not None
    await device._writer.commit_moved()
    client.crash()
    with suppress(OSError):
        await device.unmount()


async def stored_beyond_the_end(bucket: Bucket) -> bytes:
    """Return what is stored between the end and the end of its chunk."""
    device = await open_disk(bucket.client(), read_only=True)
    assert device.size == END
    found = bytes(await device.read(END, LAST * CHUNK + CHUNK - END))
    await device.unmount()
    return found


async def _whole(device: ObjectStoreDevice) -> Coroutine[Any, Any, None]:
    await fill(device, LAST, b"o")
    return device.flush()


async def _completed(device: ObjectStoreDevice) -> Coroutine[Any, Any, None]:
    await write(device, END - BLOCK, b"o" * 2 * BLOCK)
    return device.flush()


async def _part(device: ObjectStoreDevice) -> Coroutine[Any, Any, None]:
    await write(device, END, b"o" * BLOCK)
    await fill(device, 0, b"o")
    return device.flush()


async def _background(device: ObjectStoreDevice) -> Coroutine[Any, Any, None]:
    for index in (LAST, 0, 1, 2, 3, 4):
        await fill(device, index, b"o")

    async def end() -> None:
        await asyncio.gather(*device._buffer._store_tasks.values())

    return end()


async def _fold(device: ObjectStoreDevice) -> Coroutine[Any, Any, None]:
    for offset in (END, END - BLOCK):
        await write(device, offset, b"o" * BLOCK)
        await device.flush()

    async def fold() -> None:
        assert device._writer is not None
        assert await device._writer._compactor.step()

    return fold()


@pytest.mark.parametrize(
    ("begin", "inline", "request_"),
    [
        (_whole, 0, f"put chunks/{LAST:08x}"),
        (_completed, 0, f"put chunks/{LAST:08x}"),
        (_part, 0, "put segments"),
        (_part, CHUNK, "put chunks/00000000"),
        (_background, 0, f"put chunks/{LAST:08x}"),
        (_fold, CHUNK, f"put chunks/{LAST:08x}"),
    ],
)
async def test_a_record_of_a_smaller_size_has_nothing_of_what_is_cut_off_while_it_is_stored(
    bucket: Bucket, begin: Any, inline: int, request_: str
) -> None:
    client = bucket.client()
    device = await open_disk(client, limits=Limits(inline_size=inline))
    held = Held(client, request_)
    storing = asyncio.create_task(await begin(device))
    await held.begun.wait()
    resize(device, END)
    held.let_go.set()
    await storing
    await crash_after_a_record(device, client)
    assert await stored_beyond_the_end(bucket) == bytes(2 * BLOCK)


@pytest.mark.parametrize("reads_before", [True, False])
@pytest.mark.parametrize("flushes", [True, False])
@pytest.mark.parametrize("left", [True, False])
async def test_a_record_of_a_larger_size_has_nothing_of_what_was_cut_off(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, left: bool, flushes: bool, reads_before: bool
) -> None:
    """Whether or not the writer before has left data beyond the end, as an earlier version did."""
    client = bucket.client()
    device = await open_disk(client)
    await write(device, 0, b"o" * SIZE)
    await device.flush()
    with monkeypatch.context() as patch:
        if left:
            patch.setattr(DiskView, "clear_from", lambda *_: None)
        resize(device, END)
        await crash_after_a_record(device, client)
    assert await stored_beyond_the_end(bucket) == (b"o" if left else b"\0") * 2 * BLOCK

    bucket.forget_lease()
    client = bucket.client()
    device = await open_disk(client, limits=Limits(inline_size=0))
    if reads_before:
        await device.read(LAST * CHUNK, CHUNK)
    if flushes:
        held = Held(client, "put ")
        await write(device, END - 2 * BLOCK, b"n" * 2 * BLOCK)
        flush = asyncio.create_task(device.flush())
        await held.begun.wait()
        resize(device, SIZE)
        held.let_go.set()
        await flush
    else:
        resize(device, SIZE)
    await crash_after_a_record(device, client)
    found = await contents(bucket)
    assert found[END - 2 * BLOCK :] == (b"n" if flushes else b"o") * 2 * BLOCK + bytes(2 * BLOCK)


@pytest.mark.parametrize("crashes", [True, False])
async def test_what_is_cut_off_while_a_write_waits_for_room_is_not_written(
    bucket: Bucket, crashes: bool
) -> None:
    client = bucket.client()
    device = await open_disk(client, limits=Limits(unstored=0, inline_size=0))
    held = Held(client, "put chunks")
    for index in (0, 1):
        await fill(device, index, b"o")
    end = 2 * CHUNK + BLOCK
    beyond = b"n" * (CHUNK - BLOCK)
    writing = asyncio.gather(
        write(device, 2 * CHUNK, b"n" * 2 * CHUNK), write(device, 5 * CHUNK + BLOCK, beyond)
    )
    await held.begun.wait()
    assert not writing.done()
    resize(device, end)
    held.let_go.set()
    await writing
    held = Held(client, "put ")
    flush = asyncio.create_task(device.flush())
    await held.begun.wait()
    resize(device, SIZE)
    expected = b"o" * 2 * CHUNK + b"n" * BLOCK + bytes(SIZE - end)
    assert bytes(await device.read(0, SIZE)) == expected
    held.let_go.set()
    await flush
    if crashes:
        await crash_after_a_record(device, client)
    else:
        await device.unmount()
    assert await reopened(bucket) == expected


@pytest.mark.parametrize("is_frozen", [True, False])
async def test_what_is_cut_off_before_it_is_stored_does_not_come_back(
    bucket: Bucket, is_frozen: bool
) -> None:
    client = bucket.client()
    device = await open_disk(client)
    held = Held(client, "put chunks")
    await write(device, 0, b"o" * SIZE)
    if is_frozen:
        flush = asyncio.create_task(device.flush())
        await held.begun.wait()
    resize(device, END)
    resize(device, SIZE)
    held.let_go.set()
    if is_frozen:
        await flush
    expected = b"o" * END + bytes(SIZE - END)
    assert bytes(await device.read(0, SIZE)) == expected
    await device.unmount()
    assert await reopened(bucket) == expected
