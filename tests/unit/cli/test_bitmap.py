"""``aiovblk bitmap``: points of a device that a process serves, to the kernel or to clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

import aiovblk
from aiovblk.cli import bitmap, main
from aiovblk.cli.bitmap import bitmap_mounted, points_table
from aiovblk.cli.control import request_command, taking_commands
from aiovblk.cli.errors import SpecError
from aiovblk.cli.layers import Layers, open_stack
from aiovblk.storage import MemoryDevice, Retry, Tracked

from ...support.command_process import end, line, running
from ...support.fake_kernel import FakeKernel

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture
async def tracked(kernel: FakeKernel, tmp_path: Path) -> AsyncIterator[Tracked]:
    """The layer of a mounted device, below another one."""
    device = Tracked(MemoryDevice(MIB), tmp_path / "bitmaps")
    async with (
        aiovblk.mounted(Retry(device)) as mount,
        taking_commands(mount.index, {"bitmap": partial(bitmap_mounted, mount)}),
    ):
        yield device


async def request(action: str, name: str | None = None, *sources: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = await request_command(
        0, "bitmap", action=action, name=name, sources=list(sources)
    )
    return found


async def test_points_are_added_listed_merged_and_dropped(tracked: Tracked) -> None:
    await request("add", "a")
    await tracked.write(0, memoryview(bytes(4096)))
    await request("add", "b")
    assert [(each["name"], each["dirty"]) for each in await request("list")] == [
        ("a", 4096),
        ("b", 0),
    ]
    await request("merge", "b", "a")
    assert [each["dirty"] for each in await request("list")] == [4096, 4096]
    await request("drop", "a")
    assert await tracked.dirty_bitmaps() == ["b"]


async def test_point_that_is_not_there_is_an_error_that_names_those_that_are(
    tracked: Tracked,
) -> None:
    await request("add", "monday")
    with pytest.raises(SpecError, match="no point 'sunday'; there are: monday"):
        await request("drop", "sunday")
    with pytest.raises(SpecError, match="a point 'monday' already"):
        await request("add", "monday")


async def test_device_without_the_layer_is_refused(kernel: FakeKernel) -> None:
    async with (
        aiovblk.mounted(MemoryDevice(MIB)) as mount,
        taking_commands(mount.index, {"bitmap": partial(bitmap_mounted, mount)}),
    ):
        with pytest.raises(SpecError, match="mount it with --layer tracked:path=FILE"):
            await request("list")


def test_points_are_shown_as_a_table() -> None:
    found = points_table([{"name": "a", "time": "2026-01-02T03:04:05+00:00", "dirty": 4096}])
    head, row = found.splitlines()
    assert head.split() == ["POINT", "TIME", "DIRTY"]
    assert row.split()[0] == "a"
    assert row.split()[-1] == "4K"


def test_wrong_call_is_an_error_of_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitmap, "resolve", lambda path: 0)
    assert main(["bitmap", "/dev/nbd0", "--drop"]) == 2
    assert "point missing: add NAME" in capsys.readouterr().err
    assert main(["bitmap", "/dev/nbd0", "a", "--json"]) == 2
    assert "leave NAME out" in capsys.readouterr().err


def test_file_that_no_process_has_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["bitmap", str(tmp_path / "bitmaps")]) == 1
    assert "is not in use by `aiovblk serve --layer tracked:path=" in capsys.readouterr().err


async def test_layer_is_put_where_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bitmaps"
    layers = Layers.parse("retry", f"tracked:path={path},granularity=64K", "limit:requests=1000")
    async with open_stack("memory:1M", layers) as device:
        tracked = device.inner  # type: ignore[attr-defined]  # the limit's
        assert isinstance(tracked, Tracked)
        assert isinstance(tracked.inner, Retry)
        assert tracked.granularity == 65536
        await device.unmount()


@pytest.mark.deadline(120)
@pytest.mark.one_loop
async def test_served_device_is_named_by_its_file(tmp_path: Path) -> None:
    sock, file = tmp_path / "sock", tmp_path / "bitmaps"
    layer = ("--layer", f"tracked:path={file}")
    async with running("serve", "memory:1M", "--socket", sock, *layer) as server:
        await line(server.stdout)
        async with running("bitmap", file, "monday") as command:
            assert await end(command) == (0, "", "")
        async with aiovblk.connect(f"nbd+unix:///?socket={sock}") as device:
            await device.write(8192, memoryview(bytes(4096)))
        async with running("bitmap", file, "--json") as command:
            status, out, _ = await end(command)
        assert status == 0
        assert [(each["name"], each["dirty"]) for each in json.loads(out)] == [("monday", 4096)]
        server.terminate()
        await end(server)
    assert not Path(f"{file}.control").exists()
