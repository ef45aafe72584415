"""Files of layers, an overlay's and a cache's: made, used again, and refused for another disk."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiovblk.cli import main
from aiovblk.cli.errors import SpecError
from aiovblk.cli.layers import Layers, open_stack
from aiovblk.cli.spec import load_device
from aiovblk.storage import Cache, FileDevice

pytestmark = pytest.mark.one_loop  # they choose their own

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A file to put layers on, without zeroes."""
    path = tmp_path / "raw"
    path.write_bytes(os.urandom(MIB))
    return path


def layers(
    overlay: str | None = None, cache: int | None = None, cache_path: str | None = None
) -> Layers:
    path = "" if cache_path is None else f",path={cache_path}"
    chosen = [] if cache is None else [f"cache:size={cache}{path}"]
    return Layers.parse(*chosen, *([] if overlay is None else [f"overlay:path={overlay}"]))


async def test_overlay_leaves_what_lies_below_as_it_is(raw: Path) -> None:
    before = raw.read_bytes()
    for _ in range(2):
        async with open_stack(f"file:{raw}", layers(overlay="changes")) as device:
            await device.write(0, memoryview(bytes(4096)))
            assert bytes(await device.read(0, MIB)) == bytes(4096) + before[4096:]
            await device.flush()
            await device.unmount()
    assert raw.read_bytes() == before


async def test_overlay_on_a_disk_needs_no_lease() -> None:
    await (await load_device("folder:disk?size=1M")).unmount()
    before = sorted(Path("disk").rglob("*"))
    async with open_stack("folder:disk", layers(overlay="changes")) as device:
        await device.write(0, memoryview(bytes(4096)))
        await device.flush()
        await device.unmount()
    assert sorted(Path("disk").rglob("*")) == before


async def test_stack_that_is_to_be_read_only_is() -> None:
    async with open_stack("memory:1M", layers(cache=MIB), read_only=True) as device:
        assert device.read_only
        await device.unmount()


async def test_cache_file_is_made_used_again_and_refused_with_another_size(raw: Path) -> None:
    spec = f"file:{raw}"
    for _ in range(2):
        async with open_stack(spec, layers(cache=4 * MIB, cache_path="cache")) as device:
            assert bytes(await device.read(0, 4096)) == raw.read_bytes()[:4096]
            await device.unmount()
    assert Path("cache").stat().st_size == 4 * MIB
    with pytest.raises(SpecError, match="cache has 4M, and the cache is to have 8M: name another"):
        async with open_stack(spec, layers(cache=8 * MIB, cache_path="cache")):
            pass
    await FileDevice("cache").unmount()  # it is not locked
    await FileDevice(raw).unmount()


async def test_cache_of_one_disk_is_not_used_for_another() -> None:
    for name in ("a", "b"):
        Path(name).write_bytes(name.encode() * MIB)
        async with open_stack(f"file:{name}", layers(cache=4 * MIB, cache_path="cache")) as device:
            assert bytes(await device.read(0, 4096)) == name.encode() * 4096
            await device.unmount()


async def test_cache_of_a_disk_that_was_written_without_it_is_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @asynccontextmanager
    async def through_the_cache() -> AsyncIterator[Cache]:
        async with open_stack(
            "folder:disk?size=1M", layers(cache=4 * MIB, cache_path="c")
        ) as device:
            assert isinstance(device, Cache)
            yield device
            await device.unmount()

    line = 65536
    async with through_the_cache() as device:
        await device.write(0, memoryview(b"1" * line))
    async with through_the_cache() as device:  # what it wrote itself is no reason
        assert bytes(await device.read(0, line)) == b"1" * line
        assert (device.stats.hits, device.stats.misses) == (1, 0)
    other = await load_device("folder:disk")
    await other.write(0, memoryview(b"2" * line))
    await other.unmount()
    assert not caplog.messages
    async with through_the_cache() as device:
        assert bytes(await device.read(0, line)) == b"2" * line
    assert caplog.messages == [
        "what was cached is dropped: it is not of what this device holds, or has other lines"
    ]


def test_cache_path_needs_the_size_of_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "memory:1M", "--cache-path", "cache"]) == 2
    error = capsys.readouterr().err
    assert "cache size missing: add --cache SIZE to --cache-path" in error


@pytest.mark.parametrize(
    "option", [["--overlay", "o"], ["--cache", "1M"], ["--layer", "limit:rate=1M"]]
)
def test_workers_with_layers_are_refused(
    capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert main(["serve", "memory:1M", "--port", "0", "--workers", "2", *option]) == 2
    error = capsys.readouterr().err
    assert " with --workers: each worker would have its own" in error
    assert f"no {option[0]}" in error
