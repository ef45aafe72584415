"""An unmount whose steps fail or hang, before a fake kernel."""

from __future__ import annotations

import asyncio
import os

import pytest

import aiovblk
from aiovblk import AttachError, Error
from aiovblk.mounting import lifecycle, unmount_failures, unmounting
from aiovblk.threads import run_in_daemon_thread

from ...support.fake_kernel import FakeKernel
from ...support.noting_disk import (
    LAST,
    Disk,
    How,
    begun,
    check_end,
    check_given_up,
    ways_to_attach,
)


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


@ways_to_attach
@pytest.mark.parametrize("step", ["ensure_receiving", "wait_for_partitions"])
async def test_bug_before_the_device_is_live_leaves_it_unattached(
    kernel: FakeKernel, disk: Disk, how: How, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(lifecycle, step, fail)
    with pytest.raises(LookupError, match="a bug"):
        async with aiovblk.mounted(disk, attach=how, partitions=True):
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
    with pytest.raises(Error, match="the kernel does not release the device; see its log"):
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
    warning = "/dev/nbd0 was cut off from outside; what the kernel had not written back is lost"
    assert warning in caplog.text
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
