"""Devices without a server, devices in use, programs that hang: found, named and freed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiovblk.cli import doctor, list_devices
from aiovblk.cli.doctor.clean import clean_devices
from aiovblk.cli.doctor.findings import Finding
from aiovblk.kernel import status, sysfs
from aiovblk.kernel.status import DeviceState

from ..support.child_processes import children
from .support import (
    DEVICES,
    MIB,
    PATIENCE,
    Done,
    Program,
    aiovblk,
    becomes_free,
    becomes_true,
    command,
    file_system,
    program,
    sh,
    store,
)

# The programs have loops of their own.
pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]


async def diagnosed() -> list[Finding]:
    return await asyncio.to_thread(list, doctor.diagnose())


async def cleaned(*, dry_run: bool = False) -> list[Finding]:
    return await asyncio.to_thread(list, clean_devices(dry_run=dry_run))


def of(topic: str, found: list[Finding]) -> list[tuple[str, str]]:
    return [(each.level, each.text) for each in found if each.topic == topic]


def index_of(running: Program) -> int:
    return int(running.path.removeprefix("/dev/nbd"))


@contextlib.asynccontextmanager
async def opened(path: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program that has a node open, for the length of the block."""
    node = await asyncio.to_thread(os.open, path, os.O_RDONLY)
    try:
        process = await asyncio.create_subprocess_exec("sleep", "1000", stdin=node)
    finally:
        os.close(node)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_machine_in_order_has_nothing_that_fails(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"{tmp_path}/notify")
        systemd.settimeout(PATIENCE)
        async with command("memory:1M", NOTIFY_SOCKET=f"{tmp_path}/notify") as running:
            told = await asyncio.to_thread(systemd.recv, 4096)
            assert told.startswith(b"READY=1\n")
            assert told.endswith(f"STATUS=serving {running.path}".encode())
            await assert_in_order(running)


async def assert_in_order(running: Program) -> None:
    done = await aiovblk("doctor", "--json")
    found = [Finding(**each) for each in json.loads(done.output)]
    assert done.status == 0, found
    assert of("driver", found) == [("ok", "loaded, 63 of 64 devices are free")]
    assert of("nodes", found) == [("ok", "/dev/nbd0 to /dev/nbd63 exist")]
    assert of("privileges", found) == [("ok", "devices can be attached")]
    assert of("netlink", found) == [("ok", "the driver's family is available")]
    assert of("devices", found) == [("ok", f"{running.path} is served")]
    assert of("stuck", found) == [("ok", "no program waits for a device")]
    assert await running.end(signal.SIGINT) == 0


@pytest.mark.core
@pytest.mark.slow
async def test_zombie_is_named_with_who_holds_it_then_freed() -> None:
    async with command("memory:1M", "--connections", "2") as running:
        index = index_of(running)
        assert status.count_receivers()[index] == 2
        async with opened(running.path) as holder:
            await running.end(signal.SIGKILL)
            await becomes_true(lambda: status.state(index) is DeviceState.DEAD)
            by = f"opened by process {holder.pid} (sleep)"
            zombie = f"{running.path} is a zombie: its server is gone, {by}"
            assert of("devices", await diagnosed()) == [("fail", zombie)]
            (listed,) = list_devices.attached()
            assert (listed.state, listed.used) == ("dead", [by])
            planned = await cleaned(dry_run=True)
            assert f"would end process {holder.pid} (sleep)" in planned[-1].text
            assert not sysfs.is_free(index)
            done = await aiovblk("doctor", "--clean")
            assert done.status == 0, done.output
            assert f"SIGTERM to process {holder.pid} (sleep)" in done.output
            assert done.output.endswith(f"ok    clean: {running.path} is free\n")
            assert await holder.wait() == -signal.SIGTERM
        assert sysfs.is_free(index)


async def test_zombie_with_a_mounted_file_system_is_freed_by_unmounting_it(
    image: Path, tmp_path: Path
) -> None:
    async with (
        command(f"{DEVICES}:Image", IMAGE=str(image)) as running,
        file_system(running.path, tmp_path) as point,
    ):
        await running.end(signal.SIGKILL)
        await becomes_true(lambda: status.state(index_of(running)) is DeviceState.DEAD)
        *_, last = await cleaned()
        assert (last.level, last.fix) == ("fail", f"umount {point}")
    assert await becomes_free(running.path)


async def test_forced_unmount_of_a_mounted_file_system_says_what_is_left_to_do(
    image: Path, tmp_path: Path
) -> None:
    async with (
        command(f"{DEVICES}:Image", IMAGE=str(image)) as running,
        file_system(running.path, tmp_path) as point,
    ):
        await store(point)
        forced = await aiovblk("unmount", "--force", running.path)
        assert forced == Done(
            1,
            f"aiovblk: {running.path}: disconnected, but its index stays taken until its file"
            f" system is unmounted (`umount {point}`, or `umount -l {point}`): mounted at"
            f" {point}\n",
        )
        assert await running.end() == 0
    assert await becomes_free(running.path)


async def test_program_that_hangs_is_named_and_forced_unmount_frees_it(image: Path) -> None:
    options = ["--unmount-timeout", "8"]
    async with command(f"{DEVICES}:Hanging", *options, IMAGE=str(image)) as running:
        writing = asyncio.create_task(
            sh(f"exec dd if=/dev/zero of={running.path} bs=4k count=1 oflag=direct", ok=False)
        )
        await becomes_true(Path(f"{image}.log").exists)
        ((level, text),) = of("stuck", await diagnosed())
        assert level == "warn"
        assert f"(dd) waits for {running.path}" in text
        (listed,) = list_devices.attached()
        assert (listed.state, listed.in_flight) == ("alive", 1)
        assert await aiovblk("unmount", "--force", running.path) == Done(0, "")
        assert (await writing).status != 0
        assert await running.end() == 1


IO_FLUSHER = 0x00080000 | 0x00100000
"""PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE of include/linux/sched.h."""


def flushers(process: int) -> list[bool]:
    """Of each thread of a process, whether PR_SET_IO_FLUSHER is set."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # one that has ended meanwhile
            flags = int((task / "stat").read_text().rpartition(")")[2].split()[6])
            found.append(flags & IO_FLUSHER == IO_FLUSHER)
    return found


def locked(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmLck:"))


async def test_memory_safe_holds_in_every_thread_and_worker(image: Path) -> None:
    options = ["--memory-safe", "--workers", "2"]
    async with command(f"{DEVICES}:Shared", *options, IMAGE=str(image)) as running:
        workers = children(running.process.pid)
        assert len(workers) >= 2  # and perhaps a helper
        for process in (running.process.pid, *workers):
            assert all(flushers(process))
            assert Path(f"/proc/{process}/oom_score_adj").read_text() == "-1000\n"
        # Locks are not inherited; only who serves has asked for them.
        assert sum(locked(process) * 1024 > MIB for process in workers) == 2
        assert locked(running.process.pid) * 1024 > MIB
        assert await running.end(signal.SIGINT) == 0


@pytest.mark.core
async def test_memory_safe_holds_in_every_thread() -> None:
    async with command("memory:1M", "--memory-safe") as running:
        process = running.process.pid
        assert all(flushers(process))
        assert Path(f"/proc/{process}/oom_score_adj").read_text() == "-1000\n"
        assert locked(process) * 1024 > MIB
        assert await running.end(signal.SIGINT) == 0


WITHOUT = """
import os, sys
dropped = "--bounding-set=-sys_resource,-ipc_lock"
os.execvp("setpriv", ["setpriv", dropped, sys.executable, *sys.argv[1:]])
"""


async def test_memory_safe_without_the_privileges_warns_and_mounts() -> None:
    mount = ("-m", "aiovblk", "mount", "memory:1M", "--memory-safe")
    async with program("-c", WITHOUT, *mount) as running:
        lines = [await running.line() for _ in range(4)]
        for name, capability, line in zip(
            ("PR_SET_IO_FLUSHER", "mlockall", "oom_score_adj"),
            ("CAP_SYS_RESOURCE", "CAP_IPC_LOCK", "CAP_SYS_RESOURCE"),
            lines,
            strict=False,
        ):
            assert f"memory_safe without {name}" in line
            assert f"{capability} is missing" in line
        assert lines[3].startswith("mounted /dev/nbd")
        assert await running.end(signal.SIGINT) == 0
