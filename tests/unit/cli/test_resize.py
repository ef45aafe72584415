"""``aiovblk resize``: of a disk in a store, and of a device that this process serves."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

import aiovblk
from aiovblk import BlockDevice, Mount
from aiovblk.cli import control, main
from aiovblk.cli.control import control_path, request_command, taking_commands
from aiovblk.cli.diskspec import KEY_FILE, DiskSpec
from aiovblk.cli.errors import SpecError
from aiovblk.cli.layers import Layers, open_stack
from aiovblk.cli.resize import resize_mounted
from aiovblk.cli.spec import load_device
from aiovblk.kernel import sysfs
from aiovblk.storage import FileDevice, MemoryDevice, Retry

from ...support.fake_kernel import FakeKernel
from ...support.fake_ublk import FakeUblk

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_FILE, raising=False)
    monkeypatch.chdir(tmp_path)


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Call the command; return its status and its errors."""
    status = main(words)
    return status, capsys.readouterr().err


# A disk in a store


def size_of(capsys: pytest.CaptureFixture[str], spec: str) -> int:
    assert main(["info", spec, "--json"]) == 0
    size: int = json.loads(capsys.readouterr().out)["size"]
    return size


def test_disk_grows_and_shrinks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "folder:disk?size=1M&chunk_size=64K"]) == 0
    for words, size in (
        (["3M"], 3 * MIB),
        (["+1M"], 4 * MIB),
        (["4M"], 4 * MIB),
        (["512K", "--shrink"], MIB // 2),
    ):
        assert call(capsys, "resize", "folder:disk", *words) == (0, "")
        assert size_of(capsys, "folder:disk") == size


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["folder:disk", "512K"], 2, "512K is less than the 1M that it has: add --shrink"),
        (["folder:disk", "1048577"], 1, "must be a multiple of 4096 bytes, not 1048577"),
        (["folder:disk", "0", "--shrink"], 1, "size must be at least 1, not 0"),
        (["folder:disk", "big"], 2, "'big' is no size"),
        (["folder:disk", "8E"], 2, "'8E' is no size"),
        (["folder:disk", "8P"], 1, "choose a larger chunk_size"),
        (["folder:disk?size=2M", "2M"], 2, "write the disk alone, without ?size="),
        (["folder:disk?snapshot=x", "2M"], 2, "write the disk alone, without ?snapshot="),
        (["folder:other", "2M"], 1, "there is no disk in"),
        (["memory:1M", "2M"], 2, "only disks in object stores and mounted devices are resized"),
        (["file:disk.img", "2M"], 2, "for a file, use `truncate -s SIZE FILE`"),
    ],
)
def test_size_that_cannot_be_is_refused(
    words: list[str], status: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["create", "folder:disk?size=1M&chunk_size=64K"]) == 0
    found = call(capsys, "resize", *words)
    assert found[0] == status
    assert reason in found[1]
    assert size_of(capsys, "folder:disk") == MIB


# A mounted device


@asynccontextmanager
async def mounted(device: BlockDevice) -> AsyncIterator[Mount]:
    """Mount as the command does, with its socket for commands."""
    async with (
        aiovblk.mounted(device) as mount,
        taking_commands(mount.index, {"resize": partial(resize_mounted, mount)}),
    ):
        yield mount


async def test_mounted_file_grows_with_its_file(kernel: FakeKernel) -> None:
    Path("disk").write_bytes(b"a" * MIB)
    async with mounted(Retry(FileDevice("disk"))) as mount:
        await request_command(0, "resize", size=2 * MIB, shrink=False)
        assert (mount.device.size, sysfs.size(0)) == (2 * MIB, 2 * MIB)
        assert Path("disk").stat().st_size == 2 * MIB
        await request_command(0, "resize", size=MIB, shrink=True)
        assert (mount.device.size, sysfs.size(0)) == (MIB, MIB)
    # What it had is not thrown away.
    assert Path("disk").stat().st_size == 2 * MIB


async def test_mounted_disk_in_a_store_keeps_its_new_size(kernel: FakeKernel) -> None:
    await DiskSpec.parse("folder:disk?size=1M&chunk_size=64K").create()
    async with mounted(await load_device("folder:disk")) as mount:
        await request_command(0, "resize", size=2 * MIB, shrink=False)
        reader = await load_device("folder:disk", read_only=True)
        assert (reader.size, mount.device.size) == (2 * MIB, 2 * MIB)
        await reader.unmount()


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (MIB + 1, "the size must be a multiple of 512 bytes"),
        (MIB // 2, "it has 1048576 bytes, more than 524288"),
    ],
)
async def test_size_that_the_device_cannot_have_is_refused(
    size: int, reason: str, kernel: FakeKernel
) -> None:
    Path("disk").write_bytes(bytes(MIB))
    async with mounted(FileDevice("disk")):
        with pytest.raises(SpecError, match=f"/dev/nbd0: {reason}"):
            await request_command(0, "resize", size=size, shrink=False)
    assert Path("disk").stat().st_size == MIB


@pytest.mark.parametrize("size", ["x", None, True, 1.5, -512, 0, 2**63, 10**30])
async def test_size_that_is_none_changes_nothing(size: object, kernel: FakeKernel) -> None:
    Path("disk").write_bytes(bytes(MIB))
    async with mounted(FileDevice("disk")):
        with pytest.raises(SpecError, match="/dev/nbd0: "):
            await request_command(0, "resize", size=size, shrink=True)
        assert sysfs.size(0) == MIB
    assert Path("disk").stat().st_size == MIB


@pytest.mark.parametrize("read_only", [True, False])
async def test_file_that_cannot_be_extended_is_compared(
    read_only: bool, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block device has its size from elsewhere, and a file that is only read, too."""
    Path("disk").write_bytes(bytes(MIB))
    if not read_only:
        monkeypatch.setattr("os.path.isfile", lambda path: False)  # as for a block device
    async with mounted(FileDevice("disk", read_only=read_only)) as mount:
        with pytest.raises(SpecError, match="disk has only 1048576 bytes: make it larger first"):
            await request_command(0, "resize", size=2 * MIB, shrink=False)
        assert (mount.device.size, sysfs.size(0)) == (MIB, MIB)
        os.truncate("disk", 2 * MIB)
        await request_command(0, "resize", size=2 * MIB, shrink=False)
        assert (mount.device.size, sysfs.size(0)) == (2 * MIB, 2 * MIB)


async def test_file_keeps_its_size_if_the_kernel_refuses_another(ublk_kernel: FakeUblk) -> None:
    """The next server would have a device of another size, and could not take this one over."""
    ublk_kernel.features = 0x1FE  # of Linux 6.12
    Path("disk").write_bytes(bytes(MIB))
    async with aiovblk.mounted(FileDevice("disk"), attach="ublk") as mount:
        with pytest.raises(OSError, match="this kernel cannot resize"):
            await resize_mounted(mount, 2 * MIB, shrink=False)
        assert mount.device.size == MIB
    assert Path("disk").stat().st_size == MIB


async def test_file_that_another_program_has_changed_meanwhile_is_left_alone(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_mount: Mount, _blocks: int) -> None:
        os.truncate("disk", 2 * MIB + 4)
        raise OSError(errno.EOPNOTSUPP, "refused")

    monkeypatch.setattr(Mount, "resize", refuse)
    Path("disk").write_bytes(bytes(MIB))
    async with aiovblk.mounted(FileDevice("disk"), attach="ublk") as mount:
        with pytest.raises(OSError, match="refused"):
            await resize_mounted(mount, 2 * MIB, shrink=False)
    assert Path("disk").stat().st_size == 2 * MIB + 4


async def test_memory_does_not_grow(kernel: FakeKernel) -> None:
    async with mounted(Retry(MemoryDevice(MIB))) as mount:
        with pytest.raises(SpecError, match="memory cannot grow"):
            await request_command(0, "resize", size=2 * MIB, shrink=False)
        assert mount.device.size == MIB


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        ("overlay:path=o", "an overlay"),
        ("partition:size=512K", "a partition"),
        ("mirror:with=file:other", "a mirror"),
    ],
)
async def test_layer_that_cannot_grow_leaves_what_is_below_as_it_is(
    layer: str, what: str, kernel: FakeKernel
) -> None:
    for name in ("disk", "other"):
        Path(name).write_bytes(bytes(MIB))
    async with open_stack("file:disk", Layers.parse(layer, "retry")) as device, mounted(device):
        before = sysfs.size(0)
        with pytest.raises(SpecError, match=f"/dev/nbd0: {what} cannot grow"):
            await request_command(0, "resize", size=2 * MIB, shrink=False)
        assert sysfs.size(0) == before
    assert Path("disk").stat().st_size == MIB


async def test_device_of_another_program_is_refused() -> None:
    with pytest.raises(SpecError, match="not served by `aiovblk mount`: only that takes commands"):
        await request_command(0, "resize", size=MIB, shrink=False)


async def test_socket_is_for_its_owner_and_is_gone_at_the_end(kernel: FakeKernel) -> None:
    async with mounted(MemoryDevice(MIB)):
        assert control_path(0).stat().st_mode & 0o777 == 0o600
        assert [path.name for path in control_path(0).parent.glob("*.control*")] == ["nbd0.control"]
    assert not control_path(0).exists()


async def test_successor_takes_commands_while_its_predecessor_ends(kernel: FakeKernel) -> None:
    called: list[str] = []

    def named(name: str) -> control.Commands:
        async def resize(size: int, shrink: bool) -> None:
            called.append(name)

        return {"resize": resize}

    control_path(0).parent.mkdir(exist_ok=True)
    async with taking_commands(0, named("predecessor")), taking_commands(0, named("successor")):
        await request_command(0, "resize", size=MIB, shrink=False)
    assert called == ["successor"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense\n",
        b"[]\n",
        b'{"command": "stop", "arguments": {}}\n',
        b'{"command": "resize", "arguments": {"hard": true}}\n',
        b'{"command": "resize", "arguments": 5}\n',
    ],
)
async def test_command_that_is_none_is_refused(line: bytes, kernel: FakeKernel) -> None:
    async with mounted(MemoryDevice(MIB)):
        reader, writer = await asyncio.open_unix_connection(control_path(0))
        writer.write(line)
        writer.write_eof()
        assert "does not know this command" in json.loads(await reader.readline())["error"]
        writer.close()


async def test_line_that_does_not_end_is_dropped(kernel: FakeKernel) -> None:
    async with mounted(MemoryDevice(MIB)):
        reader, writer = await asyncio.open_unix_connection(control_path(0))
        writer.write(b"x" * 3 * control.MAX_LINE)
        assert await reader.read() == b""
        writer.close()


async def test_mount_goes_on_where_there_can_be_no_socket(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control.locks, "LOCKS", Path("/proc/none"))  # type: ignore[attr-defined]
    async with taking_commands(0, {}):
        assert not control_path(0).exists()
