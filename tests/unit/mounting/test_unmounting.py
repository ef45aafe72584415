"""The order of an unmount, on every way out, before a stand-in for the kernel."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import uvloop

import aiovblk
from aiovblk import AttachError, BlockDevice, DeviceBusyError, Error, Mount
from aiovblk.mounting import lifecycle, unmount_failures, unmounting
from aiovblk.protocol import Command
from aiovblk.threads import run_in_daemon_thread

from ...support.fake_kernel import PAGE, FakeKernel
from ...support.worker_services import FileOfAll

How = Literal["ioctl", "netlink"]

ways_to_attach = pytest.mark.parametrize("how", ["ioctl", "netlink"])

STORED = ["sync", "write", "flush"]
LAST = ["flush", "unmount"]


class Disk(BlockDevice):
    """A disk whose handlers note their calls in the kernel's log.

    Attributes:
        hanging, failing: the names of handlers that do.
        gate: what reads wait for.

    """

    blocks = 16

    def __init__(self, kernel: FakeKernel) -> None:
        self.note = kernel.note
        self.content = bytearray(self.size)
        self.hanging: set[str] = set()
        self.failing: set[str] = set()
        self.gate: asyncio.Future[None] | None = None

    async def _do(self, what: str) -> None:
        self.note(what)
        if what in self.hanging:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)
        if what in self.failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    async def read(self, offset: int, length: int) -> bytes:
        if self.gate is not None:
            self.note("read")
            await self.gate
        return bytes(self.content[offset : offset + length])

    async def write(self, offset: int, data: memoryview) -> None:
        await self._do("write")
        self.content[offset : offset + len(data)] = data

    async def flush(self) -> None:
        await self._do("flush")

    async def unmount(self) -> None:
        await self._do("unmount")


@pytest.fixture
def disk(kernel: FakeKernel) -> Disk:
    return Disk(kernel)


def check_end(kernel: FakeKernel) -> None:
    """The device is free, and its last two handlers were called after all else, once."""
    assert kernel.is_free
    assert kernel.log[-2:] == LAST
    assert kernel.log.count("unmount") == 1


def check_stored(kernel: FakeKernel, disk: Disk) -> None:
    """What a program wrote to page 3 has come to the disk before the disconnect."""
    assert disk.content[3 * PAGE : 4 * PAGE] == b"cached".ljust(PAGE, b"\0")
    first = kernel.log.index("sync")
    assert kernel.log[first : first + 3] == STORED
    check_end(kernel)


# In order


@pytest.mark.parametrize(
    ("how", "steps"),
    [
        ("ioctl", ["NBD_DO_IT returns", "clear"]),
        ("netlink", ["netlink disconnects within 5 s"]),
    ],
)
async def test_each_step_is_made_while_the_later_ones_still_can_be(
    kernel: FakeKernel,
    disk: Disk,
    how: How,
    steps: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with aiovblk.mounted(disk, attach=how):
        assert kernel.log == ["attached"]
        kernel.write(3, b"cached")
    assert kernel.log == ["attached", "claim", *STORED, "disconnect", *steps, "free", *LAST]
    check_stored(kernel, disk)
    assert not caplog.records


@ways_to_attach
async def test_requests_in_flight_are_answered_before_the_connection_is_closed(
    kernel: FakeKernel, disk: Disk, how: How
) -> None:
    disk.content[0] = 7
    async with aiovblk.mounted(disk, attach=how) as mount:
        disk.gate = asyncio.get_running_loop().create_future()
        reading = asyncio.wrap_future(run_in_daemon_thread(kernel.request, Command.READ, 0, PAGE))
        await asyncio.wrap_future(kernel.when("read"))
        unmount = asyncio.create_task(mount.unmount())
        await asyncio.wrap_future(kernel.when("disconnect"))
        await asyncio.wait([unmount], timeout=0.01)
        assert kernel.log[-1] == "disconnect"
        disk.gate.set_result(None)
        assert (await reading)[0] == 7
        await unmount
    check_end(kernel)


# Every way out


async def by_return(kernel: FakeKernel, disk: Disk, how: How) -> None:
    async with aiovblk.mounted(disk, attach=how):
        kernel.write(3, b"cached")


async def by_an_error(kernel: FakeKernel, disk: Disk, how: How) -> None:
    with pytest.raises(LookupError):
        async with aiovblk.mounted(disk, attach=how):
            kernel.write(3, b"cached")
            raise LookupError


async def begun(kernel: FakeKernel, disk: Disk, how: How) -> tuple[asyncio.Task[None], Mount]:
    """A mount in a task of its own."""
    live: asyncio.Future[Mount] = asyncio.get_running_loop().create_future()

    async def lead() -> None:
        async with aiovblk.mounted(disk, attach=how) as mount:
            live.set_result(mount)
            await mount.wait()

    task = asyncio.create_task(lead())
    mount = await live
    kernel.write(3, b"cached")
    return task, mount


async def by_cancellation(kernel: FakeKernel, disk: Disk, how: How) -> None:
    task, _ = await begun(kernel, disk, how)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_cancellation_again_and_again(kernel: FakeKernel, disk: Disk, how: How) -> None:
    task, _ = await begun(kernel, disk, how)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()


async def by_another_task(kernel: FakeKernel, disk: Disk, how: How) -> None:
    task, mount = await begun(kernel, disk, how)
    await asyncio.gather(mount.unmount(), mount.unmount(), task)


async def by_force(kernel: FakeKernel, disk: Disk, how: How) -> None:
    task, mount = await begun(kernel, disk, how)
    kernel.holder = True
    await mount.unmount(force=True)
    await task


async def by_being_busy(kernel: FakeKernel, disk: Disk, how: How) -> None:
    with pytest.raises(DeviceBusyError):
        async with aiovblk.mounted(disk, attach=how):
            kernel.write(3, b"cached")
            kernel.holder = True


async def by_a_disconnect_from_outside(kernel: FakeKernel, disk: Disk, how: How) -> None:
    task, _ = await begun(kernel, disk, how)
    kernel.disconnect_from_outside()
    await task


Way = Callable[[FakeKernel, Disk, How], Awaitable[None]]

WAYS_OUT: list[Way] = [
    by_return,
    by_an_error,
    by_cancellation,
    by_cancellation_again_and_again,
    by_another_task,
    by_force,
    by_being_busy,
    by_a_disconnect_from_outside,
]


@ways_to_attach
@pytest.mark.parametrize("way", WAYS_OUT, ids=lambda way: way.__name__)
async def test_every_way_out_stores_what_is_cached_and_unmounts_once(
    kernel: FakeKernel, disk: Disk, how: How, way: Way
) -> None:
    await way(kernel, disk, how)
    check_stored(kernel, disk)


@ways_to_attach
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_end_of_the_loop_is_a_way_out(
    kernel: FakeKernel, disk: Disk, how: How, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        await begun(kernel, disk, how)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    check_stored(kernel, disk)


@ways_to_attach
async def test_device_that_is_in_use_is_not_unmounted(
    kernel: FakeKernel, disk: Disk, how: How
) -> None:
    async with aiovblk.mounted(disk, attach=how) as mount:
        kernel.holder = True
        with pytest.raises(DeviceBusyError):
            await mount.unmount()
        assert kernel.log == ["attached"]
        assert await asyncio.to_thread(kernel.request, Command.READ, 0, PAGE) == bytes(PAGE)
        kernel.holder = False
        await mount.unmount()
    check_end(kernel)


async def test_request_that_comes_while_the_cache_is_written_back_is_served(
    kernel: FakeKernel, disk: Disk
) -> None:
    disk.hanging = {"write"}
    task, mount = await begun(kernel, disk, "ioctl")
    unmount = asyncio.create_task(mount.unmount())
    await asyncio.wrap_future(kernel.when("write"))
    assert await asyncio.to_thread(kernel.request, Command.READ, 0, PAGE) == bytes(PAGE)
    for each in (mount.unmount(force=True), unmount, task):
        with pytest.raises(Error, match="it was forced"):
            await each
    check_given_up(kernel)


# What goes wrong


@ways_to_attach
async def test_lost_connection_raises_and_nothing_is_asked_of_the_kernel(
    kernel: FakeKernel, disk: Disk, how: How, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AttachError, match="connection was lost"):
        async with aiovblk.mounted(disk, attach=how) as mount:
            # By netlink it would be made again.
            monkeypatch.setattr(mount._lifecycle.connections.reconnector, "open_replacement", None)
            kernel.write(3, b"cached")
            kernel.break_connections()
            await mount.wait()
    assert not {"sync", "disconnect"} & set(kernel.log)
    check_end(kernel)


@ways_to_attach
async def test_failed_write_back_raises(kernel: FakeKernel, disk: Disk, how: How) -> None:
    disk.failing = {"write"}
    with pytest.raises(Error, match="the kernel could not write back all data"):
        async with aiovblk.mounted(disk, attach=how):
            kernel.write(3, b"cached")
    assert "disconnect" in kernel.log
    check_end(kernel)


@ways_to_attach
@pytest.mark.parametrize("handler", ["flush", "unmount"])
@pytest.mark.parametrize("hangs", [False, True])
async def test_last_handler_that_fails_or_hangs_raises_and_the_next_one_is_called(
    kernel: FakeKernel,
    disk: Disk,
    how: How,
    handler: str,
    hangs: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (disk.hanging if hangs else disk.failing).add(handler)
    with pytest.raises(Error, match=rf"its {handler}\(\) failed"):
        async with aiovblk.mounted(disk, attach=how, unmount_timeout=0.3 if hangs else 30):
            pass
    check_end(kernel)
    if not hangs:
        assert f"Disk.{handler}() failed: OSError: " in caplog.text
        assert "Traceback" not in caplog.text  # the fault of a medium, and no bug


@ways_to_attach
@pytest.mark.parametrize("step", ["fsync", "NBD_DISCONNECT"])
async def test_step_in_the_kernel_that_hangs_times_out(
    kernel: FakeKernel, disk: Disk, how: How, step: str
) -> None:
    kernel.stuck = {step}
    with pytest.raises(Error, match=r"nothing was answered for 0\.3 s"):
        async with aiovblk.mounted(disk, attach=how, unmount_timeout=0.3):
            pass
    kernel.free()
    assert f"{step} hangs" in kernel.log
    check_given_up(kernel)


@ways_to_attach
async def test_handler_that_hangs_while_the_cache_is_written_back_times_out(
    kernel: FakeKernel, disk: Disk, how: How
) -> None:
    disk.hanging = {"write"}
    with pytest.raises(Error, match=r"nothing was answered for 0\.3 s"):
        async with aiovblk.mounted(disk, attach=how, unmount_timeout=0.3):
            kernel.write(3, b"cached")
    check_given_up(kernel)


@ways_to_attach
async def test_disconnect_that_never_comes_times_out(
    kernel: FakeKernel, disk: Disk, how: How
) -> None:
    kernel.sends_disc = False
    with pytest.raises(Error, match=r"nothing was answered for 0\.3 s"):
        async with aiovblk.mounted(disk, attach=how, unmount_timeout=0.3):
            pass
    check_given_up(kernel)


@ways_to_attach
async def test_device_that_does_not_come_alive_is_unmounted(
    kernel: FakeKernel, disk: Disk, how: How, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "ATTACH_TIMEOUT", 0.3)
    disk.gate = asyncio.get_running_loop().create_future()
    with pytest.raises(AttachError, match="did not come alive"):
        async with aiovblk.mounted(disk, attach=how):
            pass
    check_given_up(kernel)


@pytest.mark.parametrize("step", ["fsync", "NBD_DISCONNECT"])
async def test_force_ends_a_step_that_hangs(kernel: FakeKernel, disk: Disk, step: str) -> None:
    kernel.stuck = {step}
    task, mount = await begun(kernel, disk, "ioctl")
    task.cancel()
    await asyncio.wrap_future(kernel.when(f"{step} hangs"))
    with pytest.raises(Error, match="it was forced"):
        await mount.unmount(force=True)
    with pytest.raises(asyncio.CancelledError):
        await task
    kernel.free()
    check_given_up(kernel)


def check_given_up(kernel: FakeKernel) -> None:
    """The device's handlers have been called at the end, once, whatever the kernel did."""
    assert [each for each in kernel.log if each in LAST][-2:] == LAST
    assert kernel.log.count("unmount") == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that depend on the kernel alone get less time."""
    monkeypatch.setattr(unmounting, "KERNEL_TIMEOUT", 0.5)


@pytest.mark.usefixtures("impatient")
async def test_kernel_that_does_not_let_go_is_urged_by_ever_stronger_means(
    kernel: FakeKernel, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.stuck = {"the end of NBD_DO_IT"}
    kernel.freed_by_netlink = True
    async with aiovblk.mounted(disk, attach="ioctl"):
        pass
    first = kernel.log.index("disconnect")
    steps = [each for each in kernel.log[first:] if each not in LAST]
    assert steps == [
        "disconnect",
        "the end of NBD_DO_IT hangs",
        "clear",
        "netlink disconnects within 5 s",
        "NBD_DO_IT returns",
        "clear",
        "free",
    ]
    assert caplog.text.count("the kernel does not let go") == 2
    check_end(kernel)


@pytest.mark.usefixtures("impatient")
async def test_kernel_that_never_lets_go_raises(kernel: FakeKernel, disk: Disk) -> None:
    kernel.stuck = {"the end of NBD_DO_IT", "NBD_CLEAR_SOCK", "netlink"}
    with pytest.raises(Error, match="the kernel does not let go of it; see its log"):
        async with aiovblk.mounted(disk, attach="ioctl"):
            pass
    assert not kernel.is_free
    check_given_up(kernel)


async def test_cut_from_outside_loses_what_was_cached_and_logs_it(
    kernel: FakeKernel,
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Netlink's disconnect sends DISC and shuts the connection after it."""
    monkeypatch.setattr(unmount_failures, "RELEASE_TIMEOUT", 30)
    task, _ = await begun(kernel, disk, "netlink")
    kernel.stuck = {"the end of the connections"}
    cutting = asyncio.wrap_future(run_in_daemon_thread(kernel.disconnect, 0))
    await asyncio.wrap_future(kernel.when("sync fails"))
    await asyncio.wait([task], timeout=0.05)
    kernel.free()
    await task
    await cutting
    assert "/dev/nbd0 was cut off from outside; what the kernel cached is lost" in caplog.text
    assert kernel.log[-2:] == LAST


@ways_to_attach
async def test_program_that_keeps_the_node_open_is_logged(
    kernel: FakeKernel,
    disk: Disk,
    how: How,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unmounting, "RELEASE_TIMEOUT", 0.05)
    async with aiovblk.mounted(disk, attach=how):
        program = kernel.open_for_a_program()
    os.close(program)
    assert "cannot be mounted again while it is in use" in caplog.text


# Workers


@ways_to_attach
@pytest.mark.either_loop
async def test_each_worker_stores_and_lets_go(kernel: FakeKernel, image: Path, how: How) -> None:
    async with aiovblk.mounted(partial(FileOfAll, image), attach=how, workers=2) as mount:
        kernel.write(3, b"cached")
        assert mount.device.blocks == 2048
    assert image.read_bytes()[3 * PAGE :][:6] == b"cached"
    log = [line.split()[0] for line in Path(f"{image}.log").read_text().splitlines()]
    # One flush is the kernel's own.
    assert log == ["open"] * 2 + ["flush"] * 3 + ["unmount"] * 2
    assert kernel.is_free
