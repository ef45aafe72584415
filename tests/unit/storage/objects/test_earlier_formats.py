"""Disks that earlier versions of aiovblk have made: they are read, and converted in place."""

from __future__ import annotations

import base64
import errno
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from aiovblk.cli import main
from aiovblk.errors import StorageBusyError, StorageError
from aiovblk.storage.objects import (
    ObjectStoreDevice,
    check,
    clone,
    collect_garbage,
    convert,
    delete,
    drop_snapshot,
    snapshot,
    snapshots,
)
from aiovblk.storage.objects.lease import Lease
from aiovblk.storage.objects.records import RecordKind

from ....support.object_store import (
    BLOCK,
    CHUNK,
    SIZE,
    Bucket,
    failing,
    fill,
    once,
    open_disk,
    write,
)

KEY = bytes(range(32))
KINDS = ["plain", "compressed", "encrypted"]

# What was written by a version that knew formats 1 and 2 only: chunks 0 and 1, a snapshot, a block
# of chunk 0 and chunk 2; then, by a writer that crashed after it had flushed, blocks of 3 and 4.
EXPECTED = (
    b"c" * BLOCK + b"a" * (CHUNK - BLOCK) + b"b" * CHUNK + b"d" * CHUNK
    + b"e" * BLOCK + bytes(CHUNK - BLOCK) + b"f" * BLOCK + bytes(CHUNK - BLOCK)
).ljust(SIZE, b"\0")  # fmt: skip
SNAPSHOT = (b"a" * CHUNK + b"b" * CHUNK).ljust(SIZE, b"\0")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def key(kind: str) -> bytes | None:
    return KEY if kind == "encrypted" else None


@pytest.fixture
def bucket(kind: str) -> Bucket:
    bucket = Bucket()
    stored = json.loads(Path(__file__).with_name("earlier_formats.json").read_bytes())
    for name, data in stored[kind].items():
        bucket.objects[name] = zlib.decompress(base64.b64decode(data))
    return bucket


async def read(
    bucket: Bucket, key: bytes | None, path: str = "disk", name: str | None = None
) -> bytes:
    client = bucket.client()
    device = await open_disk(client, path, key=key, read_only=True, snapshot=name)
    data = bytes(await device.read(0, device.size))
    await device.unmount()
    return data


async def assert_unchanged(bucket: Bucket, key: bytes | None) -> None:
    assert await read(bucket, key) == EXPECTED
    assert await read(bucket, key, name="one") == SNAPSHOT
    assert await read(bucket, key, "clone") == SNAPSHOT
    for path in ("disk", "clone"):
        assert (await check(bucket.client(), path, key=key)).problems == []


async def test_disk_of_an_earlier_format_is_read(bucket: Bucket, key: bytes | None) -> None:
    before = dict(bucket.objects)
    await assert_unchanged(bucket, key)
    assert bucket.objects == before


async def test_disk_of_an_earlier_format_is_not_written_to(
    bucket: Bucket, key: bytes | None
) -> None:
    before = dict(bucket.objects)
    options: dict[str, Any] = {"key": key}
    for use in (
        open_disk(bucket.client(), **options),
        snapshot(bucket.client(), "disk", name="two", **options),
        drop_snapshot(bucket.client(), "disk", name="one", **options),
        clone(bucket.client(), "disk", name="one", target="new", **options),
        collect_garbage(bucket.client(), "disk", **options),
    ):
        with pytest.raises(StorageError, match="is only read; `aiovblk convert SPEC`") as caught:
            await use
        assert caught.value.errno == errno.EROFS
    await collect_garbage(bucket.client(), "disk", delete=False, **options)
    assert bucket.objects == before


async def test_converted_disk_has_the_same_contents_and_is_written_to(
    bucket: Bucket, key: bytes | None
) -> None:
    chunks = bucket.names("disk/chunks")
    assert await convert(bucket.client(), "disk", key=key)
    assert bucket.names("disk/chunks") == chunks
    await assert_unchanged(bucket, key)
    assert not await convert(bucket.client(), "disk", key=key)
    device = await open_disk(bucket.client(), key=key)
    await write(device, 5 * CHUNK, b"n" * BLOCK)
    await write(device, BLOCK, b"m" * BLOCK)
    await fill(device, 1, b"o")
    await device.unmount()
    changed = bytearray(EXPECTED)
    changed[5 * CHUNK : 5 * CHUNK + BLOCK] = b"n" * BLOCK
    changed[BLOCK : 2 * BLOCK] = b"m" * BLOCK
    changed[CHUNK : 2 * CHUNK] = b"o" * CHUNK
    assert await read(bucket, key) == changed
    assert await read(bucket, key, "clone") == SNAPSHOT
    await snapshot(bucket.client(), "disk", name="two", key=key)
    await clone(bucket.client(), "disk", name="two", target="new", key=key)
    assert await read(bucket, key, "new") == changed
    assert list(await snapshots(bucket.client(), "disk", key=key)) == ["one", "two"]
    for path in ("disk", "clone", "new"):
        assert (await check(bucket.client(), path, key=key)).problems == []


async def test_clone_of_an_earlier_format_is_converted_by_itself(
    bucket: Bucket, key: bytes | None
) -> None:
    assert await convert(bucket.client(), "clone", key=key)
    device = await open_disk(bucket.client(), "clone", key=key)
    await write(device, BLOCK, b"m" * BLOCK)
    await device.unmount()
    expected = SNAPSHOT[:BLOCK] + b"m" * BLOCK + SNAPSHOT[2 * BLOCK :]
    assert await read(bucket, key, "clone") == expected
    assert await read(bucket, key) == EXPECTED


@pytest.mark.parametrize("response", ["made", "not made"])
@pytest.mark.parametrize("changes", range(4))
async def test_conversion_that_was_interrupted_is_run_again(
    bucket: Bucket, key: bytes | None, changes: int, response: str
) -> None:
    client = bucket.client(crash_after=changes)
    client.process.made += (response == "made") - changes % 2  # its last change is made if odd
    client.process.changes = changes + client.process.made
    try:
        await convert(client, "disk", key=key)
    except OSError:
        assert await read(bucket, key) == EXPECTED
    await convert(bucket.client(), "disk", key=key)
    await assert_unchanged(bucket, key)
    device = await open_disk(bucket.client(), key=key)
    await write(device, 0, b"z" * BLOCK)
    await device.unmount()
    assert (await read(bucket, key))[: BLOCK + 1] == b"z" * BLOCK + b"a"


async def test_disk_in_use_is_not_converted(bucket: Bucket, key: bytes | None) -> None:
    before = dict(bucket.objects)
    lease = Lease(bucket.client().subfolder("disk"), 99, seconds=0.01)
    client = bucket.client()
    client.before = lambda request, path: lease.renew() if path == "lease" else None
    with pytest.raises(StorageBusyError, match="in use: process"):
        await convert(client, "disk", key=key)
    bucket.forget_lease()
    assert bucket.objects == before


async def test_conversion_without_its_last_step_is_read_and_finished(
    bucket: Bucket, key: bytes | None
) -> None:
    """Earlier versions know neither the kind of its record nor the fields of a checkpoint."""
    client = bucket.client()
    client.before = failing("put disk.json")
    with pytest.raises(OSError, match="away"):
        await convert(client, "disk", key=key)
    earlier = {"open", "commit", "close", "snapshot", "drop", "clone", "release"}
    assert {str(kind) for kind in RecordKind} - earlier == {"convert"}
    assert await read(bucket, key) == EXPECTED
    await convert(bucket.client(), "disk", key=key)
    await assert_unchanged(bucket, key)


async def test_conversion_succeeds_although_another_process_writes_before_its_last_record(
    bucket: Bucket, key: bytes | None
) -> None:
    client = bucket.client()
    others: list[ObjectStoreDevice] = []

    async def take_over() -> None:
        others.append(await open_disk(bucket.client(), key=key))

    once(client, "create log", take_over, after="put disk.json")
    assert await convert(client, "disk", key=key)
    [other] = others
    await other.unmount()
    await assert_unchanged(bucket, key)


async def test_disk_of_an_earlier_format_is_deleted(bucket: Bucket, key: bytes | None) -> None:
    with pytest.raises(StorageError, match="clone, needs the snapshot 'one'"):
        await delete(bucket.client(), "disk", key=key)
    await assert_unchanged(bucket, key)
    for path in ("clone", "disk"):
        await delete(bucket.client(), path, key=key)
        assert bucket.names(path) == []
    assert not bucket.objects


async def test_disk_of_an_earlier_format_that_is_in_use_is_not_deleted(
    bucket: Bucket, key: bytes | None
) -> None:
    before = dict(bucket.objects)
    lease = Lease(bucket.client().subfolder("clone"), 99, seconds=0.01)
    client = bucket.client()
    client.before = lambda request, path: lease.renew() if path == "lease" else None
    with pytest.raises(StorageBusyError, match="is in use: "):
        await delete(client, "clone", key=key)
    bucket.objects.pop("clone/lease")
    assert bucket.objects == before


def test_command_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AIOVBLK_KEY_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    stored = json.loads(Path(__file__).with_name("earlier_formats.json").read_bytes())
    for name, data in stored["plain"].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zlib.decompress(base64.b64decode(data)))
    (tmp_path / "new.raw").write_bytes(b"n" * BLOCK)
    assert main(["copy", "file:new.raw", "folder:disk", "--loop", "asyncio"]) == 1
    assert "`aiovblk convert SPEC` converts it" in capsys.readouterr().err
    for said in ("converted\n", "nothing to do: the disk has the present format\n"):
        assert main(["convert", "folder:disk", "--loop", "asyncio"]) == 0
        assert capsys.readouterr().out == said
    assert main(["check", "folder:disk", "--loop", "asyncio"]) == 0
