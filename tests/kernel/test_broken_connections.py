"""Connections that break or are cut off, and processes that end: see the table in test_stops.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import aiovblk
from aiovblk import Mount
from aiovblk.dispatch import Dispatcher
from aiovblk.kernel import netlink
from aiovblk.kernel.ioctl_attachment import IoctlAttachment

from .lost_devices import EIO, assert_usable, held, logged, reading
from .support import (
    DATA,
    DEVICES,
    MIB,
    Disk,
    assert_stored_and_said_goodbye,
    becomes_true,
    command,
    leave_dirty_pages,
    pread,
    program,
    pwrite,
    sh,
)

# The programs have loops of their own.
pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]


def servers_end(mount: Mount) -> socket.socket:
    """A duplicate of it."""
    (line,) = mount._lifecycle.connections.all()
    assert isinstance(line, Dispatcher)
    return socket.socket(fileno=os.dup(line._stream.transport.get_extra_info("socket").fileno()))


def closed(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def half_closed(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def babbled_on(sock: socket.socket) -> None:
    sock.send(b"This is not what the kernel expects.")


async def read_on_broken(
    broken: Callable[[socket.socket], None], mount: Mount, disk: Disk
) -> asyncio.Task[bytes]:
    """A read that is in flight while the connection breaks."""
    disk.gate.clear()
    disk.arrived.clear()
    read = reading(mount.path)
    await disk.arrived.wait()
    with servers_end(mount) as sock:
        broken(sock)
    return read


@pytest.mark.parametrize(
    "broken", [pytest.param(closed, marks=pytest.mark.core), half_closed, babbled_on]
)
async def test_a_broken_connection_is_the_end_or_made_again(
    broken: Callable[[socket.socket], None], attach: str
) -> None:
    disk = Disk()
    if attach == "netlink":
        # What was in flight is sent again at its time-out.
        async with aiovblk.mounted(disk, timeout=2) as mount:
            read = await read_on_broken(broken, mount, disk)
            disk.gate.set()
            assert await read == bytes(4096)
            await leave_dirty_pages(mount.path)
        assert_stored_and_said_goodbye(disk)
        return
    with pytest.raises(aiovblk.AttachError, match="connection was lost"):
        async with aiovblk.mounted(disk) as mount:
            read = await read_on_broken(broken, mount, disk)
            with pytest.raises(OSError, match=EIO):
                await read
            disk.gate.set()
            await mount.wait()
    assert disk.events == ["flush", "unmount"]
    await assert_usable(mount.path)


async def nbd_ioctl(path: str, number: int) -> None:
    script = f"import os, fcntl; fcntl.ioctl(os.open({path!r}, os.O_RDONLY), {number})"
    async with program("-c", script) as caller:
        assert (await caller.rest(), await caller.end()) == ("", 0)


class PartlyGated(Disk):
    """Answers what scans for partitions, which an open waits for, and others behind it."""

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        if offset not in (MIB, 2 * MIB):
            return self.contents(offset, length)
        return await super().read(offset, length)


@pytest.mark.core
@pytest.mark.slow
async def test_what_comes_after_a_disconnect_is_answered() -> None:
    disk = PartlyGated()
    async with aiovblk.mounted(disk, unmount_timeout=3600) as mount:
        disk.gate.clear()
        first = reading(mount.path)
        await becomes_true(lambda: disk.held == 1)
        for _ in range(2):
            await nbd_ioctl(mount.path, 0xAB08)  # NBD_DISCONNECT
        await mount._lifecycle.state.disconnected
        second = asyncio.create_task(asyncio.to_thread(pread, mount.path, 2 * MIB, 4096))
        await becomes_true(lambda: disk.held == 2)
        disk.gate.set()
        assert (await first, await second) == (bytes(4096), bytes(4096))
        await mount.wait()
    assert disk.events[-2:] == ["flush", "unmount"]
    await assert_usable(mount.path)


async def clear_socket(mount: Mount) -> None:
    await nbd_ioctl(mount.path, 0xAB04)


async def disconnect(mount: Mount) -> None:
    await asyncio.to_thread(netlink.disconnect, mount.index, 30.0)


@pytest.mark.parametrize(
    "cut_off", [clear_socket, pytest.param(disconnect, marks=pytest.mark.core)]
)
async def test_what_is_cut_off_from_outside_fails(
    cut_off: Callable[[Mount], Awaitable[None]],
) -> None:
    disk = Disk()
    async with contextlib.AsyncExitStack() as stack:
        if cut_off is clear_socket:
            reason = "another program took its socket away"
            stack.enter_context(pytest.raises(aiovblk.AttachError, match=reason))
        mount = await stack.enter_async_context(aiovblk.mounted(disk, unmount_timeout=3600))
        disk.gate.clear()
        disk.arrived.clear()
        read = reading(mount.path)
        await disk.arrived.wait()
        await cut_off(mount)
        with pytest.raises(OSError, match=EIO):
            await read
        disk.gate.set()
        await mount.wait()
    assert disk.events == ["flush", "unmount"]
    await assert_usable(mount.path)


@pytest.mark.core
async def test_a_node_that_is_closed_behind_our_back(attach: str) -> None:
    disk = Disk()
    if attach == "netlink":
        pytest.skip("the node is not kept open")
    async with aiovblk.mounted(disk) as mount:
        nothing = os.open(os.devnull, os.O_RDONLY)
        # Not just closed: the number would be that of the next file.
        attachment = mount._lifecycle.attachment
        assert isinstance(attachment, IoctlAttachment)
        await asyncio.to_thread(os.dup2, nothing, attachment._fd, inheritable=False)
        os.close(nothing)
        assert await reading(mount.path) == bytes(4096)
        await leave_dirty_pages(mount.path)
    assert disk.contents(0, MIB) == DATA
    assert disk.events[-2:] == ["flush", "unmount"]
    await assert_usable(mount.path)


async def test_a_scan_of_partitions_ends_with_its_server(image: Path) -> None:
    async with (
        command(f"{DEVICES}:Gated", IMAGE=str(image)) as running,
        held(image),
    ):
        scanning = asyncio.create_task(sh(f"blockdev --rereadpt {running.path}", ok=False))
        await logged(image, "held")
        opening = asyncio.create_task(sh(f"exec < {running.path}", ok=False))
        await running.end(signal.SIGKILL)
        await scanning
        await opening
    await assert_usable(running.path)


SERVER = """
import asyncio, os, sys, threading
sys.path.insert(0, {folder!r})
import aiovblk, devices

async def serve():
    async with aiovblk.mounted(devices.Hanging(), attach=os.environ["ATTACH"]) as mount:
        print("mounted", mount.path, flush=True)
        await mount.wait()

threading.Thread(target=asyncio.run, args=[serve()], daemon=True).start()
sys.stdin.readline()
{end}
"""


@pytest.mark.parametrize("end", ["os._exit(3)", "sys.exit(3)", "os.execlp('cat', 'cat', '-')"])
async def test_the_end_of_a_process_is_the_end_of_its_device(end: str, image: Path) -> None:
    script = SERVER.format(folder=str(Path(DEVICES).parent), end=end)
    async with program("-c", script, IMAGE=str(image)) as running:
        path = (await running.line()).removeprefix("mounted ")
        writing = asyncio.create_task(asyncio.to_thread(pwrite, path, 0, DATA))
        await logged(image, "hanging")
        assert running.process.stdin is not None
        running.process.stdin.write(b"\n")
        with pytest.raises(OSError, match=EIO):
            await writing
        await assert_usable(path)
        if "exec" in end:
            assert running.process.returncode is None
            running.process.stdin.close()
            assert await running.end() == 0
        else:
            assert await running.end() == 3
