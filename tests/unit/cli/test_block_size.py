"""Block sizes on the command line: in a SPEC, and as an option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiovblk.cli import main
from aiovblk.cli.diskspec import DiskSpec
from aiovblk.cli.errors import UsageError
from aiovblk.cli.layers import Layers, open_stack
from aiovblk.cli.spec import device_for_worker, load_device, open_spec, split_block_size
from aiovblk.storage import BlockSize, Cache, MemoryDevice, ObjectStoreDevice
from aiovblk.storage.cache.device_slots import CacheHeader

from ...support.network_client import serve

MIB = 1 << 20


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(bytes(MIB))
    Path("users.py").write_text(
        "import aiovblk.storage\ndef disk(): return aiovblk.storage.MemoryDevice(1 << 20)\n"
    )
    return tmp_path


async def block_size_of(spec: str, block_size: int | None = None) -> int:
    async with open_spec(spec, block_size=block_size) as device:
        assert device.size == MIB
        assert bytes(await device.read(0, device.block_size)) == bytes(device.block_size)
        await device.unmount()
        found: int = device.block_size
        return found


# SPECs


@pytest.mark.parametrize(
    ("spec", "default"),
    [
        ("file:disk.img", 512),
        ("memory:1M", 4096),
        ("folder:disk?size=1M", 4096),
        ("users.py:disk", 4096),
    ],
)
async def test_every_spec_takes_a_block_size(spec: str, default: int) -> None:
    assert await block_size_of(spec) == default
    for size in (512, 1024, 4096):
        more = "&" if "?" in spec else "?"
        assert await block_size_of(f"{spec}{more}block_size={size}") == size
        assert await block_size_of(spec, size) == size
        assert await block_size_of(f"{spec}{more}block_size={size}", size) == size


async def test_uri_takes_a_block_size_besides_its_own_parameters(path: Path) -> None:
    async with serve({"disk": MemoryDevice(MIB)}, unix=path):
        uri = f"nbd+unix:///disk?socket={path}"
        assert await block_size_of(uri) == 512
        assert await block_size_of(f"{uri}&block_size=4096") == 4096
        assert await block_size_of(f"nbd+unix:///disk?block_size=4K&socket={path}") == 4096


async def test_blocks_may_be_smaller_than_the_server_takes(path: Path) -> None:
    class OneDisk(MemoryDevice):
        multi_conn = True

    async with serve(lambda: OneDisk(MIB), unix=path):
        uri = f"nbd+unix:///?socket={path}"
        assert await block_size_of(uri) == 4096
        assert await block_size_of(f"{uri}&block_size=512") == 512


@pytest.mark.parametrize(
    ("spec", "rest", "size"),
    [
        ("file:a?block_size=4096", "file:a", 4096),
        ("file:what?", "file:what?", None),
        ("file:what?.img?block_size=1K", "file:what?.img", 1024),
        ("file:a?b=c", "file:a?b=c", None),
        ("https://h/f?block_size=512", "https://h/f", 512),
        ("https://h/f?a=%2F+b&block_size=512&c=?", "https://h/f?a=%2F+b&c=?", 512),
        ("https://h/f?sig=x%20y", "https://h/f?sig=x%20y", None),
        ("nbd://h/e?block_size=512", "nbd://h/e", 512),
        ("pkg.mod:make?block_size=512", "pkg.mod:make", 512),
    ],
)
def test_rest_of_the_spec_stays_as_it_is(spec: str, rest: str, size: int | None) -> None:
    assert split_block_size(spec) == (rest, size)


async def test_file_whose_size_the_blocks_do_not_divide_is_refused() -> None:
    Path("odd.img").write_bytes(bytes(MIB + 512))
    with pytest.raises(ValueError, match="no multiple of 4096"):
        await load_device("file:odd.img?block_size=4096")


async def test_device_that_cannot_have_such_blocks_is_unmounted() -> None:
    await DiskSpec.parse("folder:disk?size=4K&block_size=512").create()
    for _ in range(2):  # the second would find a lease
        with pytest.raises(ValueError, match="4096 bytes, no multiple of a block_size of 8192"):
            await load_device("folder:disk?block_size=8192")
    device = await load_device("folder:disk")
    await device.unmount()


# Layers and workers


def layers(cache: int | None = None, overlay: str | None = None) -> Layers:
    chosen = [] if cache is None else [f"cache:size={cache}"]
    return Layers.parse(*chosen, *([] if overlay is None else [f"overlay:path={overlay}"]))


async def test_layers_have_the_block_size_of_what_lies_below() -> None:
    for size in (None, 512, 4096):
        async with open_stack("file:disk.img", layers(cache=MIB), block_size=size) as device:
            assert isinstance(device, Cache)
            assert device.block_size == (size or 512)
            await device.unmount()


async def test_overlay_of_larger_blocks_is_still_opened() -> None:
    """Those that were made when files had blocks of 4096 bytes."""
    async with open_stack("file:disk.img", layers(overlay="o"), block_size=4096) as device:
        await device.write(4096, memoryview(b"x" * 4096))
        await device.unmount()
    async with open_stack("file:disk.img", layers(overlay="o")) as device:
        assert device.block_size == 4096
        assert bytes(await device.read(4096, 4096)) == b"x" * 4096
        await device.unmount()


async def test_cache_knows_the_disk_below_another_block_size() -> None:
    await DiskSpec.parse("folder:disk?size=1M").create()
    async with open_stack(
        "folder:disk", Layers.parse("cache:size=1M,path=c,policy=read"), block_size=512
    ) as device:
        assert isinstance(device, Cache)
        assert isinstance(device.inner, BlockSize)
        disk = device.inner.inner
        assert isinstance(disk, ObjectStoreDevice)
        assert device._header().identity == CacheHeader.of(device, disk.identity, 1, 1).identity
        await device.unmount()


@pytest.mark.parametrize(
    ("spec", "size", "any_part", "expected"),
    [
        ("file:disk.img", None, False, 512),
        ("file:disk.img", None, True, 1),
        ("file:disk.img", 4096, True, 4096),
        ("file:disk.img?block_size=4096", None, True, 4096),
        ("memory:1M", 512, True, 512),
    ],
)
async def test_worker_has_the_block_size_that_was_asked_for(
    spec: str, size: int | None, any_part: bool, expected: int
) -> None:
    device = await device_for_worker(spec, block_size=size, any_part=any_part)
    assert device.block_size == expected
    await device.unmount()


# Disks in object stores


def block_size_in(folder: str) -> int:
    description: dict[str, int] = json.loads(Path(folder, "disk.json").read_text())
    return description["block_size"]


@pytest.mark.one_loop
def test_new_disk_has_blocks_of_4096_bytes_or_what_is_asked_for() -> None:
    assert main(["create", "folder:one?size=1M"]) == 0
    assert main(["create", "folder:two?size=1M&block_size=512"]) == 0
    assert (block_size_in("one"), block_size_in("two")) == (4096, 512)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("file:disk.img", "folder:new", 512),
        ("file:disk.img?block_size=4096", "folder:new", 4096),
        ("memory:1M", "folder:new", 4096),
        ("file:disk.img", "folder:new?block_size=1K", 1024),
    ],
)
@pytest.mark.one_loop
def test_copy_into_a_store_keeps_the_block_size(source: str, target: str, expected: int) -> None:
    assert main(["copy", source, target]) == 0
    assert block_size_in("new") == expected


async def test_disk_that_is_there_keeps_its_contents_under_another_block_size() -> None:
    disk = await DiskSpec.parse("folder:disk?size=1M").open()
    await disk.write(0, memoryview(b"a" * 4096))
    await disk.unmount()
    async with open_spec("folder:disk?block_size=512") as device:
        await device.write(512, memoryview(b"b" * 512))
        await device.unmount()
    async with open_spec("folder:disk") as device:
        assert device.block_size == 4096
        data = bytes(await device.read(0, 4096))
        await device.unmount()
    assert data == b"a" * 512 + b"b" * 512 + b"a" * 3072


# Errors


@pytest.mark.parametrize(
    "spec",
    [
        "https://user:sesame@host/disk?block_size=3",
        "https://user:sesame@host/disk?block_size=512&block_size=512",
        "https://host/disk?X-Amz-Signature=sesame&block_size=512",
        "nbd://user:sesame@host/disk?block_size=3",
        "nbd://user:sesame@host/disk",
    ],
)
def test_secret_of_a_url_is_not_repeated_by_an_error_of_usage(
    spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", spec, "--block-size", "4096", "--socket", "socket"]) == 2
    errors = capsys.readouterr().err
    assert "host/disk" in errors
    assert "sesame" not in errors


def test_option_and_spec_that_differ_are_refused() -> None:
    with pytest.raises(UsageError, match="says block_size=512, and --block-size says 4096"):
        split_block_size("file:disk.img?block_size=512", 4096)
