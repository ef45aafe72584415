"""Requests to object stores: a folder, memory, and S3 over HTTP on a bad network; retries."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from aiovblk.aio.backoff import _Attempts
from aiovblk.storage.objects import (
    Limits,
    ObjectStoreClient,
    ObjectStoreDevice,
    check,
    clone,
    collect_garbage,
    create,
    snapshot,
)
from aiovblk.storage.objects.opening import from_url

from ....support import s3_server
from ....support.sizes import by_size

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server.server() as port:
        yield port


@pytest.fixture(params=["memory", "folder", "s3"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStoreClient:
    if request.param == "memory":
        return ObjectStoreClient(MemoryStore(), "folder")
    if request.param == "folder":
        return ObjectStoreClient(LocalStore(tmp_path), "folder")
    port = request.getfixturevalue("port")
    await s3_server.make_bucket(port)
    return ObjectStoreClient(s3_server.store(port), "folder")


async def test_object_is_put_replaced_and_deleted(client: ObjectStoreClient) -> None:
    await client.put("a/b", b"first")
    await client.put("a/b", bytearray(b"second"))
    assert bytes(await client.get("a/b")) == b"second"
    assert (await client.get("a/b")).readonly
    await client.delete(["a/b", "a/nothing"])
    await client.delete(["a/b"])
    with pytest.raises(FileNotFoundError, match="folder/a/b"):
        await client.get("a/b")


async def test_part_of_an_object_is_read(client: ObjectStoreClient) -> None:
    await client.put("a", b"0123456789")
    assert bytes(await client.get_range("a", 3, 4)) == b"3456"
    assert bytes(await client.get_range("a", 8, 4)) == b"89"  # fewer where it ends
    for start in (10, 11, 50):  # none where it ends before that
        assert bytes(await client.get_range("a", start, 4)) == b""
    await client.put("empty", b"")
    assert bytes(await client.get_range("empty", 0, 4)) == b""
    with pytest.raises(FileNotFoundError, match="folder/b"):
        await client.get_range("b", 0, 4)


async def test_segment_that_is_cut_off_fails_what_is_in_it_and_no_flush(
    client: ObjectStoreClient, caplog: pytest.LogCaptureFixture
) -> None:
    await create(client, "disk", size=8 * MIB)
    limits = Limits(inline_size=0, extents=4, memory=0)
    first = await ObjectStoreDevice.open(client, "disk", limits=limits)
    for offset in range(0, MIB, 16384):
        await first.write(offset, memoryview(os.urandom(4096)))
    expected = os.urandom(4096)
    await first.write(2 * MIB, memoryview(expected))
    writer: Any = first._writer
    writer._compaction.cancel()
    writer._compactor.make_room = lambda: asyncio.sleep(0)
    await first.unmount()
    [segment] = await client.list_objects("disk/segments")
    data = await client.get(segment.path)
    await client.put(segment.path, data[: len(data) // 2])
    device = await ObjectStoreDevice.open(client, "disk", limits=limits)
    for offset in (0, 3 * MIB):
        await device.write(offset, memoryview(expected))
        await device.flush()
        assert bytes(await device.read(offset, 4096)) == expected
    for offset in (MIB - 16384, 2 * MIB):
        with pytest.raises(OSError, match=f"{segment.path} is damaged") as caught:
            await device.read(offset, 4096)
        assert caught.value.errno == errno.EIO
    await device.unmount()
    assert "compaction leaves out what is damaged" in caplog.text


async def test_missing_object_does_not_keep_others_from_being_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Azure and GCS: a missing object is an error, at which the package stops."""
    delete = obstore.delete_async

    async def stop_at_missing(store: Any, paths: list[str]) -> None:
        for path in paths:
            await obstore.head_async(store, path)
            await delete(store, path)

    monkeypatch.setattr(obstore, "delete_async", stop_at_missing)
    client = ObjectStoreClient(MemoryStore(), "folder")
    names = [f"a/{each}" for each in range(40)]
    for name in names[::3]:
        await client.put(name, b"")
    await client.delete(names)
    assert await client.list_objects("a") == []


async def test_object_is_created_once(client: ObjectStoreClient) -> None:
    results = await asyncio.gather(
        *(client.create("a", bytes([each])) for each in range(8)), return_exceptions=True
    )
    assert results.count(None) == 1
    assert sum(isinstance(each, FileExistsError) for each in results) == 7
    assert bytes(await client.get("a")) == bytes([results.index(None)])


async def test_folder_is_listed_in_order_and_from_a_name_on(client: ObjectStoreClient) -> None:
    await asyncio.gather(*(client.put(f"a/{each:03}", b"x" * each) for each in range(30)))
    await client.put("ab/1", b"")
    assert [each.path for each in await client.list_objects("a")] == [
        f"a/{each:03}" for each in range(30)
    ]
    found = await client.list_objects("a", after="a/027")
    assert [(each.path, each.size) for each in found] == [("a/028", 28), ("a/029", 29)]
    assert await client.list_objects("nothing") == []
    assert [each.path for each in await client.subfolder("a").list_objects("")] == [
        f"{each:03}" for each in range(30)
    ]


async def test_disk_lives_in_every_store(client: ObjectStoreClient) -> None:
    random = Random(1)
    content = bytearray(8 * MIB)
    await create(client, "disk", size=8 * MIB, chunk_size=1 << 17, compress=True, key=bytes(32))
    limits = Limits(memory=MIB, unstored=2 * MIB)
    for _ in range(by_size(2, 3)):
        device = await ObjectStoreDevice.open(client, "disk", key=bytes(32), limits=limits)
        await play(device, content, random, by_size(30, 60))
        await device.unmount()
    await snapshot(client, "disk", name="one", key=bytes(32))
    await clone(client, "disk", name="one", target="folder-of-clone", key=bytes(32))
    await collect_garbage(client, "disk", key=bytes(32))
    for path in ("disk", "folder-of-clone"):
        assert (await check(client, path, key=bytes(32))).problems == []
        device = await ObjectStoreDevice.open(client, path, read_only=True, key=bytes(32))
        assert await device.read(0, 8 * MIB) == content
        await device.unmount()


async def play(
    device: ObjectStoreDevice, content: bytearray, random: Random, requests: int
) -> None:
    for _ in range(requests):
        offset = random.randrange(0, len(content), 4096)
        length = min(random.choice([1, 4, 32, 100]) * 4096, len(content) - offset)
        match random.randrange(5):
            case 0 | 1:
                data = random.randbytes(length)
                await device.write(offset, memoryview(data))
                content[offset : offset + length] = data
            case 2:
                await device.write_zeroes(offset, length, may_trim=True)
                content[offset : offset + length] = bytes(length)
            case 3:
                assert await device.read(offset, length) == content[offset : offset + length]
            case 4:
                await device.flush()


@pytest.fixture
async def faults() -> s3_server.NetworkFaults:
    return s3_server.NetworkFaults(Random(1))


@pytest.fixture
async def outside(port: int, faults: s3_server.NetworkFaults) -> AsyncIterator[ObjectStoreClient]:
    """A client of the server, through a bad network."""
    await s3_server.make_bucket(port)
    async with s3_server.proxy(port, faults) as proxy:
        # Retries of obstore itself would hide ours.
        yield ObjectStoreClient(s3_server.store(proxy, retry_config={"max_retries": 0}))


@pytest.mark.deadline(120)
async def test_bad_network_makes_a_disk_slow_and_nothing_else(
    outside: ObjectStoreClient, faults: s3_server.NetworkFaults
) -> None:
    faults.delay, faults.errors, faults.throttled, faults.resets = 0.005, 0.05, 0.05, 0.05
    random = Random(2)
    content = bytearray(4 * MIB)
    await create(outside, "disk", size=4 * MIB, chunk_size=1 << 16)
    limits = Limits(memory=MIB // 2, unstored=MIB)
    for _ in range(2):
        device = await ObjectStoreDevice.open(outside, "disk", limits=limits)
        await play(device, content, random, by_size(30, 60))
        await device.unmount()
    assert min(faults.counts.values()) > by_size(2, 5)
    assert set(faults.counts) == {"passed", "errors", "throttled", "resets"}
    faults.errors = faults.throttled = faults.resets = 0
    assert (await check(outside, "disk")).problems == []
    device = await ObjectStoreDevice.open(outside, "disk", read_only=True)
    assert await device.read(0, 4 * MIB) == content
    await device.unmount()


async def test_store_that_stays_away_is_an_error_after_the_retry_timeout(
    port: int, faults: s3_server.NetworkFaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.throttled = 1
    # The second attempt is the last, however long each takes.
    monkeypatch.setattr(_Attempts, "is_last", lambda *_: faults.counts["throttled"] >= 2)
    async with s3_server.proxy(port, faults) as proxy:
        store = s3_server.store(proxy, retry_config={"max_retries": 0})
        client = ObjectStoreClient(store)
        with pytest.raises(OSError, match="503") as caught:
            await client.get("a")
    assert caught.value.errno == errno.EIO
    assert faults.counts["throttled"] == 2


class Races(s3_server.NetworkFaults):
    """The first puts race with others that are being carried out (409)."""

    def next(self) -> str:
        fault = super().next()
        return "conflicts" if self.counts[fault] <= 3 else fault


@pytest.mark.parametrize("request_", ["put", "create"])
async def test_put_that_races_with_another_is_retried(port: int, request_: str) -> None:
    await s3_server.make_bucket(port)
    async with s3_server.proxy(port, Races(Random(1))) as proxy:
        client = ObjectStoreClient(s3_server.store(proxy, retry_config={"max_retries": 0}))
        await getattr(client, request_)("a", b"data")
        assert bytes(await client.get("a")) == b"data"


async def test_put_that_has_lost_a_race_finds_what_is_there(port: int) -> None:
    await s3_server.make_bucket(port)
    await ObjectStoreClient(s3_server.store(port)).create("a", b"winner")
    async with s3_server.proxy(port, Races(Random(1))) as proxy:
        client = ObjectStoreClient(s3_server.store(proxy, retry_config={"max_retries": 0}))
        with pytest.raises(FileExistsError):
            await client.create("a", b"loser")
        assert bytes(await client.get("a")) == b"winner"


async def test_error_of_the_store_is_one_line_without_secrets(port: int) -> None:
    await s3_server.make_bucket(port)
    client = ObjectStoreClient(s3_server.store(port))
    with pytest.raises(FileNotFoundError) as caught:
        await client.get("nothing")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_profile_that_is_not_there_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text("[disks]\naws_access_key_id = key\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "others")
    with pytest.raises(ValueError, match=r"s3://bucket: .*\bothers\b"):
        from_url("s3://bucket/folder")


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "s3://", "nonsense", "ftp://host/path", "s3:bucket"]
)
def test_url_of_no_object_store_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no object store; write s3://BUCKET/FOLDER"):
        from_url(url)


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("s3://bucket/a/b/", "a/b"),
        ("memory:///x", "x"),
        ("file:///tmp/../tmp/x", "tmp/../tmp/x"),
        ("gs://bucket", ""),
    ],
)
def test_url_names_a_folder(url: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert from_url(url)[1] == folder


async def test_profile_of_a_file_is_used(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await s3_server.make_bucket(port)
    (tmp_path / "credentials").write_text(
        "[disks]\naws_access_key_id = key\naws_secret_access_key = secret\n"
    )
    (tmp_path / "config").write_text("[profile disks]\nregion = us-east-1\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "disks")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    client, folder = from_url("s3://bucket/folder")
    await client.subfolder(folder).put("a", b"data")
    assert bytes(await client.get("folder/a")) == b"data"


async def test_what_is_put_into_a_folder_survives_a_power_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Any] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    await ObjectStoreClient(LocalStore(tmp_path), "a").put("b/c", b"data")
    await ObjectStoreClient(LocalStore(tmp_path), "a").create("b/d", b"data")
    # The folders too, since they are new, and their parent.
    names = ["a/b/c", "a/b", "a/b/d", "a", "."]
    assert {(tmp_path / name).stat().st_ino for name in names} <= set(synced)
