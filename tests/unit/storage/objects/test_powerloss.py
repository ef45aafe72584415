"""A disk in a local folder whose power fails, and one that a power failure has left."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from obstore.store import LocalStore

from aiovblk.errors import StorageError
from aiovblk.storage.objects import (
    Limits,
    ObjectStoreDevice,
    check,
    clone,
    create,
    snapshot,
)

from ....support.object_store import (
    BLOCK,
    CHUNK,
    SIZE,
    Bucket,
    contents,
    fill,
    make_disk,
    open_disk,
    write,
)

pytestmark = pytest.mark.slow

Names = dict[str, bytes]


class CrashableFolder:
    """Save what a power failure would leave of a folder, before each step that changes that.

    Data is durable when its file was synced, a name when its directory was. What else there is may
    be lost or not: a name that is there without its data is that of an empty file.
    """

    def __init__(self, root: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.images = images
        self.acknowledged: list[bytes] = [bytes(SIZE)]
        self.taken: list[tuple[Path, int]] = []
        self._synced: set[int] = set()
        self._durable: dict[Path, Names] = {}
        self._seen: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        fsync, link, replace = os.fsync, os.link, os.replace

        def patched(call: Callable[..., None], sync: bool = False) -> Callable[..., None]:
            def step(*args: Any) -> None:
                with self._lock:
                    self._take()
                    call(*args)
                    if sync:
                        self._sync(args[0])

            return step

        monkeypatch.setattr(os, "fsync", patched(fsync, sync=True))
        monkeypatch.setattr(os, "link", patched(link))
        monkeypatch.setattr(os, "replace", patched(replace))

    def _sync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.is_dir():
            self._durable[path] = self._names(path)
        else:
            self._synced.add(os.fstat(fd).st_ino)

    def _names(self, folder: Path) -> Names:
        return {each.name: self._data(each) for each in folder.iterdir() if each.is_file()}

    def _data(self, path: Path) -> bytes:
        return path.read_bytes() if path.stat().st_ino in self._synced else b""

    def _take(self) -> None:
        folders = [self.root, *(each for each in self.root.rglob("*") if each.is_dir())]
        for names_of in (self._names, lambda folder: self._durable.get(folder, {})):
            found = {folder.relative_to(self.root): names_of(folder) for folder in folders}
            state = repr(found), len(self.acknowledged)
            if state not in self._seen:
                self._seen.add(state)
                self._write(self.images / str(len(self.taken)), found)

    def _write(self, image: Path, found: dict[Path, Names]) -> None:
        for folder, names in found.items():
            (image / folder).mkdir(parents=True)
            for name, data in names.items():
                if name != "lease":
                    (image / folder / name).write_bytes(data)
        self.taken.append((image, len(self.acknowledged)))


async def work(folder: CrashableFolder, limits: Limits) -> None:
    store = LocalStore(folder.root)
    await create(store, "disk", size=SIZE, chunk_size=CHUNK)
    folder.acknowledged.append(bytes(SIZE))
    device = await ObjectStoreDevice.open(store, "disk", limits=limits)
    content = bytearray(SIZE)
    for step in range(1, 3):
        for index in (0, step):
            content[index * CHUNK : (index + 1) * CHUNK] = bytes([64 + step]) * CHUNK
            await fill(device, index, bytes([64 + step]))
        for offset in (CHUNK, 5 * CHUNK + BLOCK):
            content[offset : offset + BLOCK] = bytes([96 + step]) * BLOCK
            await write(device, offset, bytes([96 + step]) * BLOCK)
        await device.flush()
        folder.acknowledged.append(bytes(content))
        if step == 1:
            await snapshot(store, "disk", name="one")
    await device.unmount()


@pytest.mark.deadline(120)
@pytest.mark.one_loop
@pytest.mark.parametrize("limits", [Limits(), Limits(inline_size=0)], ids=["records", "segments"])
async def test_power_failure_at_any_step_leaves_the_last_flush_or_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits
) -> None:
    (tmp_path / "root").mkdir()
    with monkeypatch.context() as patch:
        folder = CrashableFolder(tmp_path / "root", tmp_path / "images", patch)
        await work(folder, limits)
    assert len(folder.taken) > 40
    for image, acknowledged in folder.taken:
        try:
            device = await ObjectStoreDevice.open(LocalStore(image), "disk")
        except FileNotFoundError:
            assert acknowledged == 1
            continue
        found = bytes(await device.read(0, SIZE))
        assert found in folder.acknowledged[acknowledged - 1 : acknowledged + 1], image
        await fill(device, 7, b"z")
        await device.unmount()
        assert (await check(LocalStore(image), "disk")).problems == []


# Torn objects, as left by an earlier version, or by hardware that ignores flushes

TORN: list[Callable[[bytes], bytes]] = [
    lambda data: b"",
    lambda data: bytes(len(data)),
    lambda data: data[:7],
    lambda data: data[:-1],
]

KEY = bytes(range(32))


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def key(request: pytest.FixtureRequest) -> bytes | None:
    found: bytes | None = request.param
    return found


async def a_crashed_disk(key: bytes | None) -> Bucket:
    """Chunk 0 was flushed, and the record of chunk 1 was being written."""
    bucket = Bucket()
    await make_disk(bucket, key=key)
    client = bucket.client()
    device = await open_disk(client, key=key)
    await fill(device, 0, b"a")
    await device.flush()
    await fill(device, 1, b"b")
    await device.flush()
    client.crash()
    bucket.forget_lease()
    device._writer._tasks.clear()  # type: ignore[union-attr]
    return bucket


def tear(bucket: Bucket, name: str, how: Callable[[bytes], bytes]) -> None:
    bucket.objects[name] = how(bucket.objects[name])


async def read_all(bucket: Bucket, key: bytes | None) -> bytes:
    device = await open_disk(bucket.client(), read_only=True, key=key)
    return bytes(await device.read(0, SIZE))


FLUSHED = (b"a" * CHUNK).ljust(SIZE, b"\0")


@pytest.mark.parametrize("how", TORN)
async def test_torn_last_record_does_not_count(
    key: bytes | None, how: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    bucket = await a_crashed_disk(key)
    *_, last = bucket.names("disk/log")
    tear(bucket, last, how)
    assert await read_all(bucket, key) == FLUSHED
    assert f"{last[5:]} was being written in a crash, and does not count" in caplog.text
    device = await open_disk(bucket.client(), key=key)
    await fill(device, 2, b"c")
    await device.unmount()
    for _ in range(2):
        found = await read_all(bucket, key)
        assert found == FLUSHED[: 2 * CHUNK] + b"c" * CHUNK + bytes(SIZE - 3 * CHUNK)
    assert (await check(bucket.client(), "disk", key=key)).problems == []


async def test_several_crashes_leave_several_torn_records() -> None:
    bucket = await a_crashed_disk(None)
    for _ in range(2):
        *_, last = bucket.names("disk/log")
        tear(bucket, last, TORN[0])
        client = bucket.client(crash_after=1)  # it crashes when it has added its first record
        with pytest.raises(OSError, match="crashed"):
            await open_disk(client)
        bucket.forget_lease()
    assert await read_all(bucket, None) == FLUSHED
    await (await open_disk(bucket.client())).unmount()
    assert await read_all(bucket, None) == FLUSHED


async def test_torn_record_that_a_later_one_rests_on_is_damage() -> None:
    bucket = await a_crashed_disk(None)
    *_, before, _ = bucket.names("disk/log")
    tear(bucket, before, TORN[0])
    with pytest.raises(StorageError, match=f"{before[5:]} is damaged: it is torn"):
        await read_all(bucket, None)


async def test_record_that_is_whole_is_not_said_to_be_torn() -> None:
    """Its readers disagree with the process that added the next one."""
    bucket = await a_crashed_disk(None)
    *_, last = bucket.names("disk/log")
    whole = bucket.objects[last]
    tear(bucket, last, TORN[0])
    with pytest.raises(OSError, match="crashed"):
        await open_disk(bucket.client(crash_after=1))
    bucket.objects[last] = whole
    with pytest.raises(StorageError, match=f"{last[5:]} is damaged: it is torn, or was"):
        await read_all(bucket, None)


async def test_changed_last_record_is_damage_and_not_torn(key: bytes | None) -> None:
    bucket = await a_crashed_disk(key)
    *_, last = bucket.names("disk/log")
    data = bucket.objects[last]
    bucket.objects[last] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(StorageError, match="is damaged"):
        await read_all(bucket, key)


@pytest.mark.parametrize("how", TORN)
async def test_torn_checkpoint_is_passed_over_for_the_one_before(
    key: bytes | None, how: Callable[[bytes], bytes]
) -> None:
    bucket = await a_crashed_disk(key)
    before = dict(bucket.objects)
    await (await open_disk(bucket.client(), key=key)).unmount()
    states = {name: data for name, data in bucket.objects.items() if name.startswith("disk/map")}
    (newest,) = states
    # The records before it were not deleted yet, and the last one is no CLOSE.
    bucket.objects = before | {newest: how(states[newest])} | logs(bucket)
    content = (b"a" * CHUNK + b"b" * CHUNK).ljust(SIZE, b"\0")
    assert await read_all(bucket, key) == content
    await (await open_disk(bucket.client(), key=key)).unmount()
    assert await read_all(bucket, key) == content
    assert newest not in bucket.objects


def logs(bucket: Bucket) -> dict[str, bytes]:
    return {name: data for name, data in bucket.objects.items() if name.startswith("disk/log")}


async def test_torn_checkpoint_of_a_clone_is_reported_as_one_that_was_not_finished() -> None:
    bucket = await a_crashed_disk(None)
    await snapshot(bucket.client(), "disk", name="one")
    await clone(bucket.client(), "disk", name="one", target="clone")
    tear(bucket, "clone/map/000000000000", TORN[0])
    with pytest.raises(StorageError, match="this clone was not finished; delete its folder"):
        await contents(bucket, "clone")


async def test_torn_checkpoint_without_its_records_is_damage() -> None:
    bucket = await a_crashed_disk(None)
    await (await open_disk(bucket.client())).unmount()
    (state,) = bucket.names("disk/map")
    tear(bucket, state, TORN[0])
    with pytest.raises(StorageError, match=f"{state[5:]} is torn, and log/0+1 is missing"):
        await read_all(bucket, None)


async def test_empty_manifest_is_reported_as_a_disk_that_was_not_finished() -> None:
    bucket = await a_crashed_disk(None)
    tear(bucket, "disk/disk.json", TORN[0])
    with pytest.raises(StorageError, match=r"disk\.json is empty: the disk was not finished"):
        await read_all(bucket, None)
