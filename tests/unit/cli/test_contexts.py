"""Metadata contexts on the command line: in a SPEC, and in what ``aiovblk info`` shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiovblk import serve
from aiovblk.bitmaps import find_dirty, list_bitmaps
from aiovblk.cli.errors import SpecError, UsageError
from aiovblk.cli.exportspec import ExportSpec
from aiovblk.cli.info import as_text, describe
from aiovblk.cli.spec import SCHEMES, load_device, open_spec
from tests.support.bitmap_disk import BitmapDisk, dirty_ranges

SIZE = 1 << 20
PREFIX = "qemu:dirty-bitmap:"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def disk() -> BitmapDisk:
    disk = BitmapDisk(SIZE, "a", "b,c")
    disk.mark("a", 4096, 512)
    return disk


def spec_of(contexts: str) -> str:
    return f"nbd+unix:///?socket={os.getcwd()}/s&contexts={contexts}"


@pytest.mark.parametrize(
    ("contexts", "bitmaps"),
    [
        (f"{PREFIX}a", ["a"]),
        (f"{PREFIX}b%2Cc,{PREFIX}a", ["a", "b,c"]),
        (PREFIX, ["a", "b,c"]),
        ("base:allocation", []),
    ],
)
async def test_spec_selects_contexts(contexts: str, bitmaps: list[str]) -> None:
    async with serve(disk(), unix="s"), open_spec(spec_of(contexts)) as device:
        assert await list_bitmaps(device) == bitmaps
        if "a" in bitmaps:
            assert dirty_ranges(await find_dirty(device, "a", 0, SIZE)) == [(4096, 512)]


async def test_bitmaps_are_there_with_other_block_sizes_and_in_a_worker() -> None:
    async with serve(disk(), unix="s"):
        device = await load_device(spec_of(PREFIX) + "&block_size=4096")
        assert dirty_ranges(await find_dirty(device, "a", 0, SIZE)) == [(4096, 4096)]
        await device.unmount()


async def test_context_that_the_server_does_not_have_is_an_error() -> None:
    async with serve(disk(), unix="s"):
        with pytest.raises(SpecError, match=f"not offer the metadata context {PREFIX}x; it has"):
            async with open_spec(spec_of(f"{PREFIX}x")):
                pass


@pytest.mark.parametrize(
    ("contexts", "why"),
    [
        ("", "NAMESPACE:NAME"),
        ("allocation", "NAMESPACE:NAME"),
        ("x:y,", "NAMESPACE:NAME"),
        ("x:y&contexts=x:z", "contexts= twice"),
        ("x:y&other=1", "parameter 'other' is unknown"),
    ],
)
async def test_contexts_that_cannot_be_read_are_a_usage_error(contexts: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        async with open_spec(spec_of(contexts)):
            pass


def test_contexts_are_no_part_of_where_the_export_is() -> None:
    location = SCHEMES["nbd"].location
    expected = location("nbd://host/disk")
    assert location(f"nbd://host/disk?contexts={PREFIX}a&block_size=4096") == expected
    assert ExportSpec.parse("nbd://host/disk?contexts=x:y").uri == "nbd://host/disk"


async def test_info_shows_the_contexts_that_are_offered() -> None:
    async with serve(disk(), unix="s"):
        found = await describe(f"nbd+unix:///?socket={os.getcwd()}/s")
    names = ["base:allocation", f"{PREFIX}a", f"{PREFIX}b,c"]
    assert found["contexts"] == names
    [line] = [line for line in as_text(found).splitlines() if line.startswith("contexts")]
    assert line.split(maxsplit=1)[1] == ", ".join(names)
