"""A ublk device outlives its server: killed, or replaced, while it is used; the next takes over."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk import AttachError, DeviceBusyError, Error, Mount, ublk
from aiovblk.errors import UblkUnavailableError
from aiovblk.kernel import sysfs
from aiovblk.kernel.status import DeviceState
from aiovblk.ublk import control, identities
from aiovblk.ublk.commands import Feature, State
from aiovblk.ublk.identified import IdentifiedAttachment

from ..support.child_processes import children
from .handing_over import hand_over
from .lost_devices import logged
from .support import (
    DATA,
    DEVICES,
    MIB,
    Disk,
    Program,
    becomes_true,
    fio,
    pread,
    program,
    pwrite,
    sh,
)
from .ublk_devices import nothing_is_left, remaining

pytestmark = [
    pytest.mark.ublk,
    pytest.mark.deadline(1200),
    pytest.mark.one_loop,
    pytest.mark.newest_python,
]

MOUNT = ["-m", "aiovblk", "mount", "--attach=ublk", "--identity=volume"]
SURVIVING = [*MOUNT, "--survive=60"]
LONG = 1000.0  # seconds for what goes on while servers are killed

surviving = partial(aiovblk.mounted, attach="ublk", identity="volume", survive=60)


@pytest.fixture
async def recovery(ublk_driver: Feature) -> AsyncIterator[None]:
    """Skip where the driver cannot recover; at the end nothing is left of any device."""
    if Feature.SAFE_STOP_DEV not in ublk_driver:
        pytest.skip("this kernel's ublk driver has no SAFE_STOP_DEV, so its recovery is not used")
    yield
    await nothing_is_left()


def number(path: str) -> int:
    return identities.number_of(path)


def writes(path: str) -> int:
    text = sysfs.attribute(path.removeprefix("/dev/"), "stat") or ""
    return int(text.split()[4])


def has_ended(process: int) -> bool:
    """Whether a process is gone, or only waits for what has started it to ask for its status."""
    try:
        return not Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return True


@asynccontextmanager
async def server(image: Path, *words: str) -> AsyncIterator[Program]:
    """A program that serves an image, and has mounted it."""
    async with program(*(words or (*SURVIVING, f"{DEVICES}:Image")), IMAGE=str(image)) as running:
        line = await running.line()
        assert line.startswith("mounted /dev/ublkb"), line + await running.rest()
        running.path = line.split()[1]
        yield running


VERIFYING = (
    "--rw=randwrite --bs=4k --iodepth=32 --ioengine=libaio --size=4M --verify=crc32c"
    " --verify_fatal=1 --loops=2"
)


async def verify(path: str) -> None:
    await fio(path, VERIFYING, patience=LONG)


async def keep_verifying(path: str, stop: Path) -> None:
    """Verify, again and again, until there is a file."""
    while not stop.exists():
        await verify(path)


async def written(path: str, count: int, working: asyncio.Task[Any]) -> None:
    """Wait until so many more writes have been completed."""
    enough = writes(path) + count
    await becomes_true(lambda: writes(path) >= enough or working.done())
    assert not working.done(), working.result()


@pytest.mark.core
async def test_servers_killed_during_writes_are_not_noticed(recovery: None, image: Path) -> None:
    async with AsyncExitStack() as ends:
        running = await ends.enter_async_context(server(image))
        path = running.path
        working = asyncio.create_task(verify(path))
        for _ in range(2):
            await written(path, 50, working)
            assert await running.end(signal.SIGKILL) == -signal.SIGKILL
            running = await ends.enter_async_context(server(image))
            assert running.path == path
        await working
        assert await running.end(signal.SIGTERM) == 0


@pytest.mark.core
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_servers_that_are_replaced_during_writes_are_not_noticed(
    recovery: None, image: Path, tmp_path: Path, loop: str
) -> None:
    words = [*SURVIVING, f"--loop={loop}", f"{DEVICES}:Image"]
    async with server(image, *words) as first:
        path = first.path
        working = asyncio.create_task(keep_verifying(path, tmp_path / "stop"))
        await written(path, 50, working)
        async with server(image, *words, "--replace") as second:
            assert second.path == path
            assert await first.end() == 0
            await written(path, 50, working)
            # By itself, at a signal: the successor prints where this one did.
            second.process.send_signal(signal.SIGUSR2)
            assert await second.line() == f"mounted {path}"
            assert await second.end() == 0
            await written(path, 50, working)
            (tmp_path / "stop").touch()
            await working
            os.kill(control.info(number(path)).server, signal.SIGTERM)
            assert await second.rest() == ""


@pytest.mark.core
async def test_no_request_is_made_twice_by_servers_that_follow_each_other(
    recovery: None, tmp_path: Path
) -> None:
    disk = Disk()
    async with AsyncExitStack() as ends:
        path = (await ends.enter_async_context(surviving(disk))).path
        working = asyncio.create_task(keep_verifying(path, tmp_path / "stop"))
        for _ in range(10):
            await written(path, 20, working)
            await ends.enter_async_context(surviving(disk, replace=True))
        (tmp_path / "stop").touch()
        await working
        assert len(disk.lengths["write"]) == writes(path)


@pytest.mark.core
async def test_a_successor_in_the_same_process_is_handed_the_device(recovery: None) -> None:
    def check_alive(mount: Mount) -> None:
        assert ublk.status_of(mount.index).state is DeviceState.ALIVE

    await hand_over(surviving, check_alive)


@pytest.mark.core
async def test_a_device_that_its_server_has_left_waits_for_another(recovery: None) -> None:
    """A successor that makes another device leaves it to a third."""
    disk = Disk()
    async with surviving(disk) as first:
        await first.detach()
    reading = asyncio.ensure_future(asyncio.to_thread(pread, first.path, 0, MIB))
    async with surviving(lambda: disk, replace=True) as second:
        assert await reading == bytes(MIB)
        with pytest.raises(AttachError, match="and this device has"):
            async with surviving(lambda: Disk(MIB), replace=True):
                pass
        await second.wait()
    writing = asyncio.ensure_future(asyncio.to_thread(pwrite, first.path, 0, DATA))
    async with surviving(lambda: disk, replace=True) as third:
        assert third.path == first.path
        assert await writing == MIB
    assert disk.contents(0, MIB) == DATA


@pytest.mark.core
async def test_what_no_server_comes_for_fails_in_the_end(recovery: None, image: Path) -> None:
    words = [*MOUNT, "--survive=2", f"{DEVICES}:Hanging"]
    async with server(image, *words) as running:
        path = running.path
        writing = asyncio.ensure_future(asyncio.to_thread(pwrite, path, 0, bytes(4096)))
        await logged(image, "hanging")
        await running.end(signal.SIGKILL)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await writing
    await nothing_is_left()


@pytest.mark.core
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("opened", [False, True])
async def test_unmounting_in_order_loses_nothing_that_is_cached(
    recovery: None, opened: bool, outside: bool
) -> None:
    """With recovery STOP_DEV discards the page cache; nor is a reader to keep it mounted."""
    disk = Disk()
    async with surviving(disk) as mount:

        async def unmount() -> None:
            if outside:
                await asyncio.to_thread(ublk.unmount, mount.path, timeout=LONG)
            await mount.unmount()

        fd = await asyncio.to_thread(os.open, mount.path, os.O_RDWR)
        try:
            assert await asyncio.to_thread(os.pwrite, fd, DATA * 4, 0) == 4 * MIB
            if opened:
                await unmount()
        finally:
            await asyncio.to_thread(os.close, fd)
        if not opened:
            await unmount()
        assert disk.contents(0, 4 * MIB) == DATA * 4
        assert disk.events[-2:] == ["flush", "unmount"]
    await nothing_is_left()


@pytest.mark.core
async def test_a_file_system_that_is_cut_off_keeps_what_was_written(
    recovery: None, tmp_path: Path
) -> None:
    disk = Disk()
    async with surviving(disk) as mount:
        await sh(f"mkfs.ext4 -q {mount.path} && mount {mount.path} {tmp_path}")
        assert await asyncio.to_thread((tmp_path / "file").write_bytes, DATA) == MIB
        with pytest.raises(DeviceBusyError):
            await mount.unmount()
        await mount.unmount(force=True)
        await sh(f"umount {tmp_path}")
    async with surviving(disk) as mount:
        await sh(f"mount -o ro {mount.path} {tmp_path}")
        assert await asyncio.to_thread((tmp_path / "file").read_bytes) == DATA
        await sh(f"umount {tmp_path}")


@pytest.mark.core
async def test_a_handler_that_hangs_does_not_keep_a_device_that_survives(recovery: None) -> None:
    disk = Disk()
    with pytest.raises(Error, match="nothing was answered for 1 s"):
        async with surviving(disk, unmount_timeout=1) as mount:
            disk.gate.clear()
            writing = asyncio.ensure_future(asyncio.to_thread(pwrite, mount.path, 0, DATA))
            await disk.arrived.wait()
            await mount.unmount(force=True)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        await writing


@pytest.mark.core
async def test_what_is_served_is_not_taken_over(recovery: None) -> None:
    async with surviving(Disk()) as mount:
        with pytest.raises(DeviceBusyError, match=f"served by process {os.getpid()} "):
            async with surviving(Disk()):
                pass
        assert await asyncio.to_thread(pread, mount.path, 0, 4096) == bytes(4096)


@pytest.mark.core
async def test_an_orphan_waits_for_a_server_of_the_same(
    recovery: None, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused ones, and one that fails in the middle, leave it to the next."""
    async with server(image) as running:
        path = running.path
        await running.end(signal.SIGKILL)
    reading = asyncio.ensure_future(asyncio.to_thread(pread, path, 0, MIB))
    await becomes_true(lambda: ublk.status_of(number(path)).state is DeviceState.LOST)
    with pytest.raises(AttachError, match="it waits for another server; use --force"):
        await asyncio.to_thread(ublk.unmount, path)
    other = "/dev/ublkb77"
    with pytest.raises(DeviceBusyError, match=f"attached at {path}; mount it there"):
        async with surviving(Disk(), other):
            pass
    with pytest.raises(AttachError, match="attached with 16777216 bytes, and this device has"):
        async with surviving(Disk(MIB)):
            pass
    disk = Disk(16 * MIB)

    def fail(attachment: IdentifiedAttachment, seconds: float) -> None:
        raise OSError(errno.EIO, "a fault")

    disk.gate.clear()
    with monkeypatch.context() as patch:
        patch.setattr(IdentifiedAttachment, "wait_until_live", fail)
        with pytest.raises(AttachError, match="did not come alive: a fault"):
            async with surviving(disk):
                pass
    disk.gate.set()
    await disk.write(0, memoryview(DATA))
    assert control.info(number(path)).state == State.QUIESCED
    async with surviving(disk) as mount:
        assert mount.path == path
        assert await reading == DATA


@pytest.mark.core
async def test_an_orphan_can_be_ended_by_force(recovery: None, image: Path) -> None:
    async with server(image) as running:
        path = running.path
        await running.end(signal.SIGKILL)
    reading = asyncio.ensure_future(asyncio.to_thread(pread, path, 0, MIB))
    await becomes_true(lambda: ublk.status_of(number(path)).state is DeviceState.LOST)
    await asyncio.to_thread(partial(ublk.unmount, path, force=True, timeout=LONG))
    with pytest.raises(OSError, match=f"{os.strerror(errno.EIO)}|{os.strerror(errno.ENXIO)}"):
        await reading


@pytest.mark.core
async def test_the_watchdog_of_a_dead_server_leaves_the_device_to_its_successor(
    recovery: None, image: Path
) -> None:
    words = [*MOUNT, "--survive=3", f"{DEVICES}:Image"]
    async with server(image, *words) as first:
        (watchdog,) = children(first.process.pid)
        await first.end(signal.SIGKILL)
    async with server(image) as second:
        await becomes_true(lambda: has_ended(watchdog))
        assert await asyncio.to_thread(pread, second.path, 0, 4096) == bytes(4096)
        assert await second.end(signal.SIGTERM) == 0


@pytest.mark.core
async def test_an_identity_alone_keeps_a_second_server_away(ublk_driver: Feature) -> None:
    """Without `survive` a device needs no recovery, which is unsound on some kernels."""
    identified: Any = partial(aiovblk.mounted, attach="ublk", identity="volume")
    mount: Mount
    async with identified(Disk()) as mount:
        assert Feature.USER_RECOVERY not in control.info(number(mount.path)).flags
        with pytest.raises(DeviceBusyError, match=f"served by process {os.getpid()} "):
            async with identified(Disk()):
                pass
        with pytest.raises(AttachError, match="it was mounted without survive="):
            async with identified(Disk(), replace=True):
                pass
    await nothing_is_left()


@pytest.mark.core
async def test_unsound_recovery_is_refused(ublk_driver: Feature) -> None:
    if Feature.SAFE_STOP_DEV in ublk_driver:
        pytest.skip("the recovery of this kernel's ublk driver is sound")
    with pytest.raises(UblkUnavailableError, match="may hang all block devices"):
        async with surviving(Disk()):
            pass
    assert not remaining()
