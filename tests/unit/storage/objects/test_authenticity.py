"""An attacker who can write to the bucket, but has no key, cannot change what is read."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from aiovblk.cli import main
from aiovblk.cli.diskspec import KEY_FILE
from aiovblk.errors import StorageError
from aiovblk.storage.objects import (
    check,
    clone,
    collect_garbage,
    convert,
    create,
    snapshot,
    trust_origins,
)
from aiovblk.storage.objects.codec import ObjectCodec
from aiovblk.storage.objects.manifest import Manifest

from ....support.object_store import CHUNK, SIZE, Bucket, fill, make_disk, open_disk

KEY = bytes(range(32))


async def a_disk(bucket: Bucket, path: str, letter: bytes, **options: Any) -> None:
    await make_disk(bucket, path, **{"key": KEY} | options)
    device = await open_disk(bucket.client(), path, key=options.get("key", KEY))
    for index in range(SIZE // CHUNK):
        await fill(device, index, letter)
    await device.unmount()


@pytest.fixture
async def bucket() -> Bucket:
    """A bucket with a secret disk, a golden one and a clone of that, all with the same key."""
    bucket = Bucket()
    await a_disk(bucket, "payroll", b"p")
    await a_disk(bucket, "golden", b"g")
    await snapshot(bucket.client(), "golden", name="one", key=KEY)
    await clone(bucket.client(), "golden", name="one", target="clone", key=KEY)
    return bucket


def read_manifest(bucket: Bucket, path: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(bucket.objects[f"{path}/disk.json"])
    return fields


def put(bucket: Bucket, path: str, fields: dict[str, Any]) -> None:
    bucket.objects[f"{path}/disk.json"] = json.dumps(fields).encode()


async def read(bucket: Bucket, path: str, key: bytes | None = KEY) -> bytes:
    device = await open_disk(bucket.client(), path, read_only=True, key=key)
    try:
        return bytes(await device.read(0, SIZE))
    finally:
        await device.unmount()


async def test_clone_cannot_be_made_to_read_another_disk(bucket: Bucket) -> None:
    assert await read(bucket, "clone") == b"g" * SIZE
    fields = read_manifest(bucket, "clone")
    fields["origins"][0] = {"path": "payroll", "disk": read_manifest(bucket, "payroll")["disk"]}
    put(bucket, "clone", fields)
    for use in (
        read(bucket, "clone"),
        check(bucket.client(), "clone", key=KEY),
        collect_garbage(bucket.client(), "clone", key=KEY),
        snapshot(bucket.client(), "clone", name="two", key=KEY),
    ):
        with pytest.raises(StorageError, match=r"disk\.json is damaged: it was changed"):
            await use


@pytest.mark.parametrize(
    "change",
    [
        {"origins": []},
        {"origins": [{"path": "elsewhere", "disk": "0" * 32}]},
        {"size": SIZE // 2},
        {"block_size": 512},
        {"chunk_size": 2 * CHUNK},
        {"compress": True},
        {"version": 1},
        {"version": 2},
        {"version": 3},
    ],
)
async def test_manifest_of_an_encrypted_disk_cannot_be_changed(
    bucket: Bucket, change: dict[str, Any]
) -> None:
    put(bucket, "clone", read_manifest(bucket, "clone") | change)
    with pytest.raises(StorageError, match=r"it was changed since|not the key of the disk"):
        await read(bucket, "clone")


async def test_manifest_cannot_be_that_of_another_disk(bucket: Bucket) -> None:
    """An intact one, with the same key: the disk's own objects do not fit it."""
    put(bucket, "clone", read_manifest(bucket, "payroll"))
    with pytest.raises(StorageError, match="cannot be decrypted: another key, or it was changed"):
        await read(bucket, "clone")


async def test_seal_of_one_disk_is_of_no_use_to_another(bucket: Bucket) -> None:
    fields = read_manifest(bucket, "clone")
    put(bucket, "clone", fields | {"key_check": read_manifest(bucket, "payroll")["key_check"]})
    with pytest.raises(StorageError, match="this is not the key of the disk"):
        await read(bucket, "clone")
    put(bucket, "clone", fields | {"key_check": None})
    with pytest.raises(StorageError, match="its seal is missing"):
        await read(bucket, "clone")


@pytest.mark.parametrize("kind", ["log", "map", "chunks"])
async def test_object_of_one_disk_is_damage_in_another(bucket: Bucket, kind: str) -> None:
    await a_disk(bucket, "twin", b"t")  # by the same steps, so with the same keys
    for name in bucket.names(f"payroll/{kind}"):
        bucket.objects[name.replace("payroll", "twin")] = bucket.objects[name]
    with pytest.raises(StorageError, match="cannot be decrypted: another key, or it was changed"):
        await read(bucket, "twin")


async def test_chunk_of_one_place_is_damage_in_another(bucket: Bucket) -> None:
    first, second, *_ = bucket.names("payroll/chunks")
    bucket.objects[second] = bucket.objects[first]
    with pytest.raises(StorageError, match=f"{second[8:]} is damaged: the checksum of its"):
        await read(bucket, "payroll")


async def test_lease_decides_nothing_of_what_is_read(bucket: Bucket) -> None:
    for lease in (b"", b"{}", b'{"epoch": 99, "seconds": 86400}'):
        bucket.objects["payroll/lease"] = lease
        device = await open_disk(bucket.client(), "payroll", key=KEY)
        assert await device.read(0, SIZE) == b"p" * SIZE
        await device.unmount()


# Disks of earlier versions


def as_format_1(bucket: Bucket, path: str, key: bytes | None) -> None:
    """Rewrite a manifest as earlier versions have made it."""
    fields = read_manifest(bucket, path) | {"version": 1}
    if key is not None:
        codec = ObjectCodec(bytes.fromhex(fields["disk"]), key=key)
        fields["key_check"] = codec.seal("key", b"").hex()
    put(bucket, path, fields)


@pytest.mark.parametrize(("key", "version"), [(None, 3), (KEY, 4)])
async def test_format_says_whether_a_disk_is_encrypted(key: bytes | None, version: int) -> None:
    bucket = Bucket()
    await a_disk(bucket, "golden", b"g", key=key)
    await snapshot(bucket.client(), "golden", name="one", key=key)
    await clone(bucket.client(), "golden", name="one", target="clone", key=key)
    for path in ("golden", "clone"):
        assert read_manifest(bucket, path)["version"] == version
        assert (read_manifest(bucket, path)["key_check"] is None) == (key is None)
        assert await read(bucket, path, key) == b"g" * SIZE


async def test_encrypted_disk_of_format_1_is_read_and_converted(bucket: Bucket) -> None:
    as_format_1(bucket, "payroll", KEY)
    assert await read(bucket, "payroll") == b"p" * SIZE
    await convert(bucket.client(), "payroll", key=KEY)
    assert read_manifest(bucket, "payroll")["version"] == 4
    device = await open_disk(bucket.client(), "payroll", key=KEY)
    await fill(device, 0, b"q")
    await device.unmount()
    assert await read(bucket, "payroll") == b"q" * CHUNK + b"p" * (SIZE - CHUNK)
    with pytest.raises(StorageError, match="this is not the key of the disk"):
        await read(bucket, "payroll", bytes(32))


@pytest.mark.parametrize("chunk_size", [CHUNK // 2, 2 * CHUNK])
async def test_chunk_size_of_format_1_cannot_be_changed(bucket: Bucket, chunk_size: int) -> None:
    as_format_1(bucket, "payroll", KEY)
    put(bucket, "payroll", read_manifest(bucket, "payroll") | {"chunk_size": chunk_size})
    with pytest.raises(StorageError, match=f"it has 8 chunks for {SIZE} bytes"):
        await read(bucket, "payroll")


async def test_encrypted_clone_of_format_1_is_refused_until_its_origins_are_trusted(
    bucket: Bucket,
) -> None:
    as_format_1(bucket, "clone", KEY)
    reason = r"whose chunks it reads: golden\. If that is right, `aiovblk check SPEC --trust-ori"
    with pytest.raises(StorageError, match=reason) as caught:
        await read(bucket, "clone")
    assert caught.value.errno == errno.EACCES
    with pytest.raises(StorageError, match="not the key"):
        await trust_origins(bucket.client(), "clone", key=bytes(32))
    await trust_origins(bucket.client(), "clone", key=KEY)
    assert read_manifest(bucket, "clone")["version"] == 2
    assert await read(bucket, "clone") == b"g" * SIZE
    before = dict(bucket.objects)
    await trust_origins(bucket.client(), "clone", key=KEY)  # once is enough
    assert bucket.objects == before


async def test_clone_of_format_1_that_was_robbed_of_its_origins_is_damaged(bucket: Bucket) -> None:
    as_format_1(bucket, "clone", KEY)
    put(bucket, "clone", read_manifest(bucket, "clone") | {"origins": []})
    with pytest.raises(StorageError, match=r"is of ancestor 1, which disk\.json does not have"):
        await read(bucket, "clone")
    report = await check(bucket.client(), "clone", key=KEY)
    assert report.problems == ["disk.json lacks ancestor 1, which has 8 chunks"]


async def test_clone_of_a_disk_that_had_format_1_is_sealed(bucket: Bucket) -> None:
    as_format_1(bucket, "golden", KEY)
    await convert(bucket.client(), "golden", key=KEY)
    await clone(bucket.client(), "golden", name="one", target="new", key=KEY)
    assert read_manifest(bucket, "new")["version"] == 4
    assert await read(bucket, "new") == b"g" * SIZE


async def test_manifest_of_too_many_brackets_is_refused_as_no_disk(bucket: Bucket) -> None:
    bucket.objects["payroll/disk.json"] = b"[" * 100_000
    with pytest.raises(StorageError, match="not that of a disk of aiovblk"):
        await read(bucket, "payroll")


async def test_later_format_is_reported(bucket: Bucket) -> None:
    put(bucket, "payroll", read_manifest(bucket, "payroll") | {"version": 5})
    with pytest.raises(StorageError, match="has format 5, this aiovblk knows 1 to 4 only; upgra"):
        await read(bucket, "payroll")


def test_origins_are_trusted_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "key"))
    monkeypatch.chdir(tmp_path)
    for words in (
        ["create", "folder:golden?size=1M"],
        ["snapshot", "folder:golden", "one"],
        ["clone", "folder:golden?snapshot=one", "folder:clone"],
    ):
        assert main([*words, "--loop", "asyncio"]) == 0
    path = tmp_path / "clone/disk.json"
    old = Manifest.decode(path.read_bytes())
    fields = json.loads(path.read_bytes()) | {
        "version": 1,
        "key_check": ObjectCodec(old.identity, key=KEY).seal("key", b"").hex(),
    }
    path.write_text(json.dumps(fields))
    assert main(["check", "folder:clone", "--loop", "asyncio"]) == 1
    assert "aiovblk check SPEC --trust-origins" in capsys.readouterr().err
    assert main(["check", "folder:clone", "--trust-origins", "--loop", "asyncio"]) == 0
    assert main(["check", "folder:clone", "--loop", "asyncio"]) == 0


# Disks inside others


@pytest.mark.parametrize("path", ["payroll/new", "payroll/chunks", "payroll/a/b/c"])
async def test_disk_inside_the_folder_of_another_is_refused(bucket: Bucket, path: str) -> None:
    before = dict(bucket.objects)
    reason = f"{path} is inside the folder of another disk, payroll; choose one outside"
    with pytest.raises(FileExistsError, match=reason):
        await make_disk(bucket, path)
    with pytest.raises(FileExistsError, match=reason):
        await clone(bucket.client(), "golden", name="one", target=path, key=KEY)
    assert bucket.objects == before


async def test_disk_in_a_store_that_is_a_disk_is_refused() -> None:
    bucket = Bucket()
    await make_disk(bucket, "")
    with pytest.raises(FileExistsError, match="disk, the root of this store; choose one outside"):
        await make_disk(bucket, "a/b")


async def test_disk_where_others_may_not_be_looked_at_is_made() -> None:
    """With credentials for a part of the bucket only."""
    bucket = Bucket()
    client = bucket.client()

    def before(request: str, path: str) -> None:
        if (request, path) == ("get", "disk.json"):
            asked.append(path)
            if len(asked) > 1:  # the first is about the disk itself
                raise PermissionError(errno.EACCES, path)

    asked: list[str] = []
    client.before = before
    await create(client, "a/b/c", size=SIZE, chunk_size=CHUNK)
    assert "a/b/c/disk.json" in bucket.objects


def test_command_refuses_a_disk_inside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(KEY_FILE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["create", "folder:disk?size=1M", "--loop", "asyncio"]) == 0
    (tmp_path / "link").symlink_to("disk")
    for spec in ("folder:disk/chunks?size=1M", "folder:link/new?size=1M"):
        assert main(["create", spec, "--loop", "asyncio"]) == 1
        assert "is inside the folder of another disk" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["disk.json"]
