"""A device that several processes serve."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import pytest

import aiovblk
from aiovblk import BlockDevice, Mount
from aiovblk.events import ConnectionRestored
from aiovblk.mounting.recovery import reconnect
from aiovblk.mounting.workers.backend import WorkerBackend

from ..support.sizes import by_size
from .support import Program, command, fio, pattern, pread, pwrite, sh

pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]

SIZE = 16 * 1024 * 1024
VERIFY = "--rw=randwrite --bs=4k --iodepth=32 --ioengine=libaio --verify=crc32c --group_reporting"


class InFile(BlockDevice):
    """A file that any number of processes may have open, and a log beside it."""

    block_size = 4096
    blocks = SIZE // block_size
    multi_conn = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDWR)
        self.writes = 0

    async def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.file, length, offset)

    async def write(self, offset: int, data: memoryview) -> None:
        os.pwrite(self.file, data, offset)
        self.writes += 1
        if self.writes == 200:
            self.log("busy")

    async def flush(self) -> None:
        os.fdatasync(self.file)
        self.log("flush")

    async def unmount(self) -> None:
        os.close(self.file)
        self.log("unmount")

    def log(self, event: str) -> None:
        with open(f"{self.path}.log", "a") as log:
            log.write(f"{event} {os.getpid()}\n")


def logged(path: Path) -> list[str]:
    return Path(f"{path}.log").read_text().split("\n")


async def workers_of(running: Program) -> list[str]:
    return (await sh(f"pgrep -P {running.process.pid} -f aiovblk.workers")).output.split()


def pids(mount: Mount) -> list[int]:
    backend = mount._lifecycle.backend
    assert isinstance(backend, WorkerBackend)
    return [each.worker.pid for each in backend._connections]


async def on_both_processors(mount: Mount, options: str) -> None:
    try:
        await fio(
            mount.path,
            "--numjobs=2 --offset_increment=8m --cpus_allowed=0,1 --cpus_allowed_policy=split"
            f" {VERIFY} {options}",
        )
    except TimeoutError:
        for pid in pids(mount):
            os.kill(pid, signal.SIGABRT)  # so they print where they were
        raise


@pytest.fixture(autouse=True)
def workers_print_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")


@pytest.mark.core
@pytest.mark.slow
async def test_two_workers_serve_one_disk(image: Path) -> None:
    async with aiovblk.mounted(partial(InFile, image), workers=2) as mount:
        await on_both_processors(mount, f"--size={by_size(1, 4)}m --fsync=64")
        os.truncate(image, 2 * SIZE)
        await mount.resize(2 * SIZE // 4096)
        assert mount.device.size == 2 * SIZE
        data = pattern(4096)
        await asyncio.to_thread(pwrite, mount.path, 2 * SIZE - 4096, data)
        assert await asyncio.to_thread(pread, mount.path, 2 * SIZE - 4096, 4096) == data
        dirty = pattern(1 << 20)
        await asyncio.to_thread(pwrite, mount.path, 0, dirty, direct=False)
        workers = pids(mount)
    assert image.read_bytes()[: len(dirty)] == dirty
    last = logged(image)[-5:-1]
    assert sorted(last[:2]) == sorted(f"flush {pid}" for pid in workers)
    assert sorted(last[2:]) == sorted(f"unmount {pid}" for pid in workers)
    assert mount.stats.writes > by_size(500, 2000)
    for line in mount._lifecycle.connections.all():
        assert line.stats.writes > by_size(125, 500)
        assert line.stats.in_flight == 0


async def test_the_loss_of_a_worker_loses_no_write_and_that_of_all_is_told(
    image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(aiovblk.AttachError, match=r"worker process \d+ was ended by SIGKILL"):
        async with aiovblk.mounted(
            partial(InFile, image), attach="ioctl", workers=2, timeout=3
        ) as mount:
            working = asyncio.create_task(on_both_processors(mount, "--size=4m --loops=2"))
            first = pids(mount)[0]
            await sh(f"tail -n +1 --retry -f {image}.log 2>/dev/null | grep -q -m1 'busy {first}'")
            os.kill(first, signal.SIGKILL)
            await working
            data = pattern(4096)
            await asyncio.to_thread(pwrite, mount.path, 0, data)
            os.kill(pids(mount)[1], signal.SIGKILL)
            await mount.wait()
    assert f"worker process {first} was ended by SIGKILL" in caplog.text
    assert image.read_bytes()[: len(data)] == data


async def test_a_lost_worker_has_a_successor(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy guest may take longer than half a minute to start an interpreter.
    monkeypatch.setattr(reconnect, "RECONNECT_TIMEOUT", 3600.0)
    async with aiovblk.mounted(partial(InFile, image), attach="netlink", workers=2) as mount:
        for place in range(2):
            events = mount.events()
            lost = pids(mount)[place]
            os.kill(lost, signal.SIGKILL)
            async for event in events:
                if isinstance(event, ConnectionRestored):
                    break
            assert lost not in pids(mount)
            data = pattern(4096, place)
            await asyncio.to_thread(pwrite, mount.path, 0, data)
            assert image.read_bytes()[: len(data)] == data


async def test_a_worker_that_hangs_is_ended(image: Path) -> None:
    with pytest.raises(aiovblk.Error, match="nothing was answered for 2 s"):
        async with aiovblk.mounted(partial(InFile, image), workers=2, unmount_timeout=2) as mount:
            workers = pids(mount)
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
            with pytest.raises(TimeoutError, match="a worker has not answered for 2 s"):
                await mount.resize(2 * SIZE // 4096)
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_the_command(image: Path) -> None:
    async with command(f"file:{image}", "--workers=2") as running:
        data = pattern(4096)
        await asyncio.to_thread(pwrite, running.path, 0, data, direct=False)
        # As systemd does it: the workers are told as well, and take no notice.
        workers = await workers_of(running)
        await sh(f"kill -INT {' '.join(workers)}; kill -TERM {' '.join(workers)}")
        assert await running.end(signal.SIGTERM) == 0
    assert image.read_bytes()[:4096] == data


async def test_a_killed_parent_leaves_no_worker(image: Path) -> None:
    async with command(f"file:{image}", "--workers=2") as running:
        assert len(await workers_of(running)) == 2
        children = (await sh(f"pgrep -P {running.process.pid}")).output.split()
        await running.end(signal.SIGKILL)
        for pid in children:  # also what watches over the device
            await sh(f"timeout 300 tail --pid={pid} -f /dev/null")
