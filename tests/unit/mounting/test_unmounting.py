"""The order of an unmount, on every way out, before a fake kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import uvloop

import aiovblk
from aiovblk import DeviceBusyError, Error
from aiovblk.protocol import Command
from aiovblk.threads import run_in_daemon_thread

from ...support.fake_kernel import PAGE, FakeKernel
from ...support.noting_disk import (
    LAST,
    STORED,
    Disk,
    How,
    begun,
    check_end,
    check_given_up,
    check_stored,
    ways_to_attach,
)
from ...support.polling import cancel_until_done
from ...support.worker_services import FileOfAll

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


async def by_cancellation(kernel: FakeKernel, disk: Disk, how: How) -> None:
    task, _ = await begun(kernel, disk, how)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_cancellation_again_and_again(kernel: FakeKernel, disk: Disk, how: How) -> None:
    task, _ = await begun(kernel, disk, how)
    await cancel_until_done(task)
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
