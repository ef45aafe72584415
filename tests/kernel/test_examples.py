"""Each example does what its first lines promise."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .support import (
    MIB,
    Done,
    Program,
    leave_dirty_pages,
    pattern,
    pread,
    program,
    pwrite,
    sh,
    unmount,
)

# The programs have loops of their own.
pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextlib.asynccontextmanager
async def example(name: str, *arguments: str) -> AsyncIterator[Program]:
    """Run an example and enter when it has named its device."""
    async with program(str(EXAMPLES / name), *arguments) as running:
        line = await running.line()
        found = re.search(r"/dev/nbd\d+", line)
        assert found, line + await running.rest()
        running.path = found[0]
        yield running


async def test_deadbeef_is_a_read_only_disk_of_4_mib() -> None:
    async with example("deadbeef.py") as running:
        assert running.path == "/dev/nbd0"
        dump = await sh("xxd /dev/nbd0 | head -n 2")
        beef = "dead beef dead beef dead beef dead beef  ................"
        assert dump.output == f"00000000: {beef}\n00000010: {beef}\n"
        assert (await sh("blockdev --getsize64 --getro /dev/nbd0")).output == "4194304\n1\n"
        everything = await asyncio.to_thread(pread, "/dev/nbd0", 0, 4 * MIB, direct=False)
        assert everything == b"\xde\xad\xbe\xef" * MIB
        written = await sh("LC_ALL=C dd if=/dev/zero of=/dev/nbd0 bs=1024 count=1", ok=False)
        assert written.status == 1
        assert "error writing '/dev/nbd0': Operation not permitted\n" in written.output
        assert await running.end(signal.SIGINT) == 0
        assert await running.rest() == "unmounted /dev/nbd0\n"


async def test_deadbeef_takes_another_device() -> None:
    async with example("deadbeef.py", "/dev/nbd7") as running:
        assert running.path == "/dev/nbd7"
        assert await running.end(signal.SIGINT) == 0


async def test_ramdisk_holds_a_file_system(tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    async with example("ramdisk.py") as running:
        await sh(f"mkfs.ext4 -q {running.path} && mount {running.path} {point}")
        await sh(f"cp -r {EXAMPLES} {point} && umount {point} && fsck.ext4 -fn {running.path}")
        await sh(f"mount {running.path} {point} && diff -r {EXAMPLES} {point}/examples")
        await sh(f"umount {point}")
        assert await running.end(signal.SIGINT) == 0
        assert await running.rest() == "unmounted\n"


@contextlib.asynccontextmanager
async def service() -> AsyncIterator[tuple[Program, int]]:
    """The service, and its port."""
    async with program(str(EXAMPLES / "embedded_service.py")) as running:
        line = await running.line()
        found = re.fullmatch(r"disk (/dev/nbd\d+), port (\d+)", line)
        assert found, line + await running.rest()
        running.path = found[1]
        yield running, int(found[2])


async def ask(port: int, line: str) -> str:
    """Send the service a line; its answer, empty when it closes the connection instead."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{line}\n".encode())
    answer = await reader.readline()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return answer.decode()


async def reads_and_writes(port: int) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+) reads, (\d+) writes\n", await ask(port, ""))
    assert found
    return int(found[1]), int(found[2])


async def test_service_answers_while_its_disk_is_used() -> None:
    async with service() as (running, port):
        reads, writes = await reads_and_writes(port)
        writing = asyncio.create_task(asyncio.to_thread(pwrite, running.path, 0, pattern(8 * MIB)))
        while not writing.done():
            await reads_and_writes(port)
        assert await asyncio.to_thread(pread, running.path, 0, 8 * MIB) == pattern(8 * MIB)
        after = await reads_and_writes(port)
        assert after[0] > reads
        assert after[1] > writes
        assert await ask(port, "quit") == ""
        assert await running.rest() == "disk unmounted\nservice ended\n"
        assert await running.end() == 0


async def test_service_and_disk_end_at_ctrl_c() -> None:
    async with service() as (running, port):
        await reads_and_writes(port)
        assert await running.end(signal.SIGINT) == 0
        assert await running.rest() == "disk unmounted\n"


async def test_service_and_disk_end_at_sigterm() -> None:
    async with service() as (running, _):
        await leave_dirty_pages(running.path)
        assert await running.end(signal.SIGTERM) == 0
        assert await running.rest() == "disk unmounted\nservice ended\n"


async def test_service_ends_when_its_disk_is_unmounted_from_outside() -> None:
    async with service() as (running, port):
        await leave_dirty_pages(running.path)
        assert await unmount(running.path) == Done(0, "")
        assert await running.rest() == "disk unmounted\nservice ended\n"
        assert await running.end() == 0
        with pytest.raises(ConnectionRefusedError):
            await ask(port, "")
