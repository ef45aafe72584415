"""Cache and overlay files belong to a disk, not to the SPEC as it was typed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import aiovblk
from aiovblk.cli.contents import contents_of, sample
from aiovblk.cli.diskspec import KEY_FILE, DiskSpec
from aiovblk.cli.layers import Layers, open_stack
from aiovblk.cli.spec import load_device
from aiovblk.storage import Cache, FileDevice, HTTPDevice, MemoryDevice, Overlay

pytestmark = pytest.mark.one_loop  # of no account here

MIB = 1 << 20
LINE = 65536

DROPPED = "what was cached is dropped: it is not of what this device holds, or has other lines"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(KEY_FILE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def read(spec: str, cache: Path) -> tuple[bytes, bool]:
    """The first byte of a disk, and whether it was in the cache."""
    async with open_stack(spec, Layers.parse(f"cache:size=4M,path={cache}")) as device:
        assert isinstance(device, Cache)
        found = bytes(await device.read(0, 4096))[:1]
        hit = device.stats.hits == 1
        await device.unmount()
    return found, hit


# Caches


async def test_same_spec_in_two_directories_is_two_disks(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / name / "disk.img").write_bytes(name.encode() * MIB)
        monkeypatch.chdir(here / name)
        assert await read("file:disk.img", here / "cache") == (name.encode(), False)


async def test_one_file_by_any_name_is_one_disk(here: Path) -> None:
    (here / "folder").mkdir()
    (here / "disk.img").write_bytes(b"a" * MIB)
    (here / "link").symlink_to("disk.img")
    names = ["disk.img", "./disk.img", "folder/../disk.img", "link", f"{here}/disk.img"]
    hits = [await read(f"file:{name}", here / "cache") for name in names]
    assert hits == [(b"a", False), *[(b"a", True)] * 4]


def rewrite(path: Path) -> None:
    path.write_bytes(b"b" * MIB)


def replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(b"b" * MIB)
    status = path.stat()
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(path)


@pytest.mark.parametrize("change", [rewrite, replace])
async def test_file_that_others_have_changed_is_another_disk(
    here: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None]
) -> None:
    path = here / "disk.img"
    path.write_bytes(b"a" * MIB)
    os.utime(path, ns=(0, 0))
    await read("file:disk.img", here / "cache")
    change(path)
    assert await read("file:disk.img", here / "cache") == (b"b", False)
    assert caplog.messages == [DROPPED]


async def test_file_that_was_written_through_the_cache_is_the_same_disk(here: Path) -> None:
    (here / "disk.img").write_bytes(b"a" * MIB)
    layers = Layers.parse(f"cache:size=4M,path={here / 'cache'}")
    async with open_stack("file:disk.img", layers) as device:
        await device.write(0, memoryview(b"b" * LINE))
        await device.trim(2 * LINE, LINE)
        await device.unmount()
    assert await read("file:disk.img", here / "cache") == (b"b", True)


async def test_disk_in_memory_is_another_one_each_time(here: Path) -> None:
    for _ in range(2):
        assert await read("memory:1M", here / "cache") == (b"\0", False)


SOURCE = """
from aiovblk.storage import MemoryDevice
class Disk(MemoryDevice):
    def __init__(self):
        super().__init__(1 << 20)
        self._memory[:] = {letter!r} * (1 << 20)
"""


async def test_program_of_one_name_in_two_directories_is_two_disks(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / name / "disk.py").write_text(SOURCE.format(letter=name.encode()))
        monkeypatch.chdir(here / name)
        for spec in ("disk.py:Disk", f"{here}/{name}/disk.py:Disk"):
            expected = name.encode(), spec != "disk.py:Disk"
            assert await read(spec, here / "cache") == expected


class Versioned(MemoryDevice):
    """A device with an identity of its contents."""

    identity = "version 1"


def test_device_that_has_an_identity_is_asked_for_it() -> None:
    device = Versioned(MIB)
    contents = contents_of(device, "module:Versioned")
    assert contents() == "version 1"
    device.identity = "version 2"
    assert contents() == "version 2"


def named(spec: str) -> str:
    return contents_of(MemoryDevice(MIB), spec)()


def test_module_is_where_its_file_is() -> None:
    where = named(f"{__name__}:Versioned")
    assert where == f"{os.path.realpath(__file__)}:Versioned"


def test_export_is_named_by_its_uri_in_one_form_without_secrets(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert named("nbd://HOST/a") == named("nbd://host:10809/a") == "nbd://host/a"
    assert named("nbd://host/a") != named("nbd://host/b") != named("nbd://other/b")
    assert named("nbds://host/a?tls-psk-file=/etc/keys") == named("nbds://host/a")
    (here / "a").mkdir()
    first = named("nbd+unix:///?socket=sock")
    assert first == named(f"nbd+unix:///?socket={here}/sock")
    monkeypatch.chdir(here / "a")
    assert named("nbd+unix:///?socket=sock") != first
    assert named("nbd+unix:///?socket=../sock") == first


async def test_query_of_a_url_distinguishes_files_and_its_signature_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HTTPDevice, "identity", "name and version")
    device = object.__new__(HTTPDevice)

    def of(query: str) -> str:
        return contents_of(device, f"https://host/get?{query}")()

    assert of("") == of("X-Amz-Signature=1&X-Amz-Date=2") == of("se=3&sp=r&sig=4") == of("token=5")
    assert of("id=1") == of("id=1&Expires=2&Signature=3")
    assert len({of(""), of("id=1"), of("id=2"), of("id=1&part=2")}) == 4
    assert "secret" not in of("id=secret")


def test_folder_is_where_it_really_is(here: Path) -> None:
    (here / "disk").mkdir()
    (here / "link").symlink_to("disk")
    assert DiskSpec.parse("folder:link").url == DiskSpec.parse("folder:disk").url


# Overlays


async def write_over(spec: str, offset: int = 0) -> None:
    async with open_stack(spec, Layers.parse("overlay:path=diff")) as device:
        await device.write(offset, memoryview(b"x" * 4096))
        await device.unmount()


async def test_overlay_is_refused_over_another_file(here: Path) -> None:
    for name in ("a", "b"):
        (here / name).write_bytes(name.encode() * MIB)
    await write_over("file:a")
    before = (here / "diff").read_bytes()
    with pytest.raises(ValueError, match="the base holds something else than when"):
        await write_over("file:b")
    assert (here / "diff").read_bytes() == before
    await write_over("file:a", 8192)


async def test_overlay_is_taken_over_a_base_that_was_moved_or_has_grown(here: Path) -> None:
    (here / "a").write_bytes(os.urandom(MIB))
    await write_over("file:a")
    (here / "a").rename(here / "b")
    await write_over("file:b", 8192)
    with (here / "b").open("ab") as file:
        file.write(b"more" * 1024)
    await write_over("file:b", 16384)


@pytest.mark.parametrize("offset", [0, MIB // 2 - 4096, MIB - 4096])
async def test_overlay_is_refused_over_a_base_that_has_changed(here: Path, offset: int) -> None:
    (here / "a").write_bytes(bytes(MIB))
    await write_over("file:a")
    with (here / "a").open("r+b") as file:
        os.pwrite(file.fileno(), b"changed", offset)
    with pytest.raises(ValueError, match="the base holds something else"):
        await write_over("file:a")


async def test_overlay_of_an_earlier_version_is_taken_as_it_is(here: Path) -> None:
    (here / "a").write_bytes(bytes(MIB))
    base = FileDevice(here / "a", read_only=True)
    await (await Overlay.file(base, here / "diff")).unmount()
    await write_over("file:a")


async def test_empty_overlay_is_made_one_of_the_base_that_is_there(here: Path) -> None:
    """Such as that into which it was committed."""
    (here / "a").write_bytes(bytes(MIB))
    await write_over("file:a")
    overlay = await Overlay.file(FileDevice(here / "a"), here / "diff")
    await overlay.commit()
    await overlay.unmount()
    assert (here / "a").read_bytes().startswith(b"x" * 4096)
    await write_over("file:a", 8192)
    await write_over("file:a", 16384)
    with (here / "a").open("r+b") as file:
        os.pwrite(file.fileno(), b"changed", 0)
    with pytest.raises(ValueError, match="the base holds something else"):
        await write_over("file:a")


async def test_overlay_is_refused_over_a_disk_that_was_written_since(here: Path) -> None:
    for letter in (b"a", b"b"):
        device = await load_device("folder:disk?size=1M")
        await device.write(0, memoryview(letter * 4096))
        await device.unmount()
        if letter == b"a":
            await write_over("folder:disk")
            await write_over("folder:disk")
    with pytest.raises(ValueError, match="the base holds something else"):
        await write_over("folder:disk")


async def test_overlay_over_a_remote_disk_looks_at_what_that_holds(here: Path) -> None:
    for letter in (b"a", b"a", b"b"):
        device = MemoryDevice(MIB)
        await device.write(0, memoryview(letter * MIB))
        async with aiovblk.serve({"": device}, unix=here / f"socket{letter!r}"):
            spec = f"nbd+unix:///?socket={here}/socket{letter!r}"
            if letter == b"a":
                await write_over(spec)
            else:
                with pytest.raises(ValueError, match="the base holds something else"):
                    await write_over(spec)


@pytest.mark.parametrize("size", [512, 4096, 5 * 4096, MIB, MIB + 512, 3 * MIB])
async def test_sample_looks_at_the_beginning_and_the_end_of_any_size(size: int) -> None:
    class Counted(MemoryDevice):
        async def read(self, offset: int, length: int) -> bytes | memoryview:
            assert length > 0
            assert offset + length <= size
            reads.append((offset, length))
            return await super().read(offset, length)

    reads: list[tuple[int, int]] = []
    device = Counted(4 * MIB, block_size=512)
    first = await sample(device, size)
    assert min(reads)[0] == 0
    assert max(offset + length for offset, length in reads) == size
    assert len(set(reads)) == len(reads) <= 81
    await device.write(size - 512, memoryview(b"a" * 512))
    assert await sample(device, size) != first


async def test_export_with_a_block_size_is_the_same_export_to_a_cache(here: Path) -> None:
    async with aiovblk.serve(MemoryDevice(MIB), unix="s"):
        found = set()
        for query in ("", "&block_size=512"):
            spec = f"nbd+unix:///?socket={here}/s{query}"
            device = await load_device(spec)
            found.add(contents_of(device, spec)())
            await device.unmount()
    assert len(found) == 1
