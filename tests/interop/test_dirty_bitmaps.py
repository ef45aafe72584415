"""Dirty bitmaps: libnbd and qemu read those of our server, our client reads those of qemu-nbd."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from aiovblk import connect, serve
from aiovblk.cli.info import describe
from tests.support.bitmap_disk import BitmapDisk, dirty_ranges

from .programs import run
from .servers import serving

MIB = 1 << 20
SIZE = 8 * MIB
PREFIX = "qemu:dirty-bitmap:"
DEBIAN_PYTHON = "/usr/bin/python3"
WITH_LIBNBD = str(Path(__file__).parent / "bitmap_libnbd_client.py")

pytestmark = pytest.mark.deadline(90)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def disk() -> BitmapDisk:
    disk = BitmapDisk(SIZE, "a", "b")
    disk.mark("a", MIB, 65536)
    disk.mark("b", 0, 512)
    return disk


# Our server


@pytest.mark.parametrize(
    ("name", "dirty"), [("a", [(MIB, 65536)]), ("b", [(0, 512)])], ids=["a", "b"]
)
async def test_nbdinfo_maps_a_bitmap(
    path: Path, disk: BitmapDisk, name: str, dirty: list[tuple[int, int]]
) -> None:
    uri = f"nbd+unix:///?socket={path}"
    async with serve(disk, unix=path):
        found = json.loads(await run(f"nbdinfo --map={PREFIX}{name} --json '{uri}'"))
        await run(f"nbdinfo --map={PREFIX}c '{uri}'", status=1)
    assert sum(each["length"] for each in found) == SIZE
    assert {(each["type"], each["description"]) for each in found} == {(0, "clean"), (1, "dirty")}
    assert [(each["offset"], each["length"]) for each in found if each["type"]] == dirty


async def test_nbdinfo_lists_the_contexts(path: Path, disk: BitmapDisk) -> None:
    async with serve({"disk": disk}, unix=path):
        found = json.loads(await run(f"nbdinfo --json 'nbd+unix:///disk?socket={path}'"))
    [export] = found["exports"]
    assert export["contexts"] == ["base:allocation", f"{PREFIX}a", f"{PREFIX}b"]


async def has_libnbd(attribute: str) -> bool:
    script = f"import nbd; print(hasattr(nbd.NBD, {attribute!r}))"
    return (await run(f"{DEBIAN_PYTHON} -c {shlex.quote(script)}")).strip() == "True"


@pytest.mark.parametrize("form", ["structured", "extended"])
async def test_libnbd_reads_several_bitmaps_at_once(
    path: Path, disk: BitmapDisk, form: str
) -> None:
    if form == "extended" and not await has_libnbd("block_status_filter"):
        pytest.skip("this libnbd has no extended headers; they came with 1.18")
    async with serve(disk, unix=path) as server:
        await run(f"{DEBIAN_PYTHON} {WITH_LIBNBD} '{server.uris[0]}' {form}")


@pytest.mark.parametrize(
    ("name", "dirty"), [("a", [(MIB, 65536)]), ("b", [(0, 512)])], ids=["a", "b"]
)
async def test_qemu_img_maps_a_bitmap(
    path: Path, disk: BitmapDisk, name: str, dirty: list[tuple[int, int]]
) -> None:
    options = f"driver=nbd,server.type=unix,server.path={path},export=disk"
    options += f",x-dirty-bitmap={PREFIX}{name}"
    async with serve({"disk": disk}, unix=path):
        mapped = json.loads(await run(f"qemu-img map --output=json --image-opts {options}"))
    # qemu-img takes bit 0 for that of a hole: what is dirty is no data to it.
    assert [(each["start"], each["length"]) for each in mapped if not each["data"]] == dirty


# Our client


async def make_qcow2(path: Path) -> Path:
    """A disk of 64 MiB with a bitmap, in which two clusters of 64 KiB are dirty."""
    image = path / "disk.qcow2"
    await run(f"qemu-img create -q -f qcow2 {image} 64M")
    await run(f"qemu-io -f qcow2 -c 'write 0 1M' {image}")
    await run(f"qemu-img bitmap --add -g 65536 -f qcow2 {image} since")
    await run(f"qemu-io -f qcow2 -c 'write 1M 64k' -c 'write 60M 1k' {image}")
    return image


async def test_client_reads_the_bitmap_of_qemu_nbd(tmp_path: Path) -> None:
    image = await make_qcow2(tmp_path)
    with serving("qemu-nbd", "-t", "-r", "-f", "qcow2", "-A", "-B", "since", str(image)) as server:
        uri = f"nbd+unix:///?socket={server.path}"
        async with connect(uri, contexts=["qemu:"], list_contexts=True) as remote:
            assert remote.offered_contexts == (
                "base:allocation",
                "qemu:allocation-depth",
                f"{PREFIX}since",
            )
            assert sorted(remote.contexts) == sorted(remote.offered_contexts)
            assert await remote.dirty_bitmaps() == ["since"]
            extents = await remote.dirty_extents("since", 0, remote.size)
            assert dirty_ranges(extents) == [(MIB, 65536), (60 * MIB, 65536)]
            assert sum(extent.length for extent in extents) == remote.size
            depths = await remote.block_status("qemu:allocation-depth", 0, remote.size)
            assert depths[0] == (MIB + 65536, 1)
            assert [extent.hole for extent in await remote.extents(0, remote.size)][:2] == [
                False,
                True,
            ]


async def test_info_shows_the_contexts_of_qemu_nbd(tmp_path: Path) -> None:
    image = await make_qcow2(tmp_path)
    with serving("qemu-nbd", "-t", "-r", "-f", "qcow2", "-B", "since", str(image)) as server:
        found = await describe(f"nbd+unix:///?socket={server.path}")
    assert found["contexts"] == ["base:allocation", f"{PREFIX}since"]


async def test_server_passes_the_bitmap_of_qemu_nbd_on(tmp_path: Path, path: Path) -> None:
    image = await make_qcow2(tmp_path)
    with serving("qemu-nbd", "-t", "-r", "-f", "qcow2", "-B", "since", str(image)) as server:
        uri = f"nbd+unix:///?socket={server.path}"
        async with connect(uri, contexts=[PREFIX]) as remote, serve(remote, unix=path):
            ours = f"nbdinfo --map={PREFIX}since --json 'nbd+unix:///?socket={path}'"
            found = json.loads(await run(ours))
    assert [(each["offset"], each["length"]) for each in found if each["type"]] == [
        (MIB, 65536),
        (60 * MIB, 65536),
    ]
