"""Whatever stops or ends a server, or its thread in NBD_DO_IT: what becomes of the device.

Each test is run for both ways of attaching. By ioctl, a stop is the end of the device, with an
error; by netlink it is a pause. In neither case does anything hang, or remain. Names are those of
tests, without `test_`; those about connections and the ends of processes are in
test_broken_connections.py.

What ends NBD_DO_IT, or would:

Ctrl-Z, a frozen control group, a debugger    a_stop_is_a_pause_or_the_end; test_programs.py
a suspend                                     a_suspend_is_a_pause_or_the_end
strace without a stop                         a_tracer_that_stops_nothing_does_nothing
signals, with SA_RESTART and without          signals_do_nothing
fork and exec in another thread               test_forks.py; every test that runs a program
the server's end closed, shut, or misused     a_broken_connection_is_the_end_or_made_again
NBD_DISCONNECT                                test_ways_out.py: an_ioctl_disconnect_from_outside_...
NBD_DISCONNECT again, and requests after it   what_comes_after_a_disconnect_is_answered
NBD_DISCONNECT, and a handler hangs           test_ways_out.py: a_handler_that_never_returns_...
CLEAR_SOCK or netlink's DISCONNECT by others  what_is_cut_off_from_outside_fails
the node closed by another thread             a_node_that_is_closed_behind_our_back
one of several connections lost, or all       test_connections.py

After NBD_DO_IT has returned, and the death of a process:

requests in flight when the connection ends  a_broken_connection_is_the_end_or_made_again
a partition scan in flight, opens behind it  a_scan_of_partitions_ends_with_its_server
SIGKILL                                      test_programs.py: a_killed_server_leaves_an_index_...
os._exit, sys.exit, exec                     the_end_of_a_process_is_the_end_of_its_device
a server in another process is killed        test_workers.py: the_loss_of_a_worker_...
the node is open elsewhere, or mounted       test_doctor.py: zombie_...
a forked child has inherited it all          test_forks.py
nodes of partitions remain                   test_io.py: partitions_of_an_image_appear_and_leave
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

import aiovblk
from aiovblk.kernel import sysfs

from .lost_devices import EIO, assert_unreadable, assert_usable, held, logged, reading
from .support import (
    DATA,
    DEVICES,
    MIB,
    Disk,
    Program,
    assert_stored_and_said_goodbye,
    becomes_true,
    command,
    interpreter,
    leave_dirty_pages,
    sh,
    stopped,
)

# The programs have loops of their own.
pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]

PTRACER = f"{Path(__file__).parent}/ptracer.py"
CGROUPS = Path("/run/aiovblk-cgroups")

STOPPED = "its thread was stopped (Ctrl-Z, a debugger, a frozen container or a suspend do)"

Stop = Callable[[int], AbstractAsyncContextManager[None]]
"""Stops a process for the length of a block."""


@contextlib.asynccontextmanager
async def ctrl_z(process: int) -> AsyncIterator[None]:
    os.kill(process, signal.SIGSTOP)
    await stopped(process)
    yield
    os.kill(process, signal.SIGCONT)


@contextlib.asynccontextmanager
async def freezer(process: int) -> AsyncIterator[None]:
    CGROUPS.mkdir(exist_ok=True)
    if (await sh(f"mount -t cgroup2 none {CGROUPS}", ok=False)).status:
        pytest.skip("cgroup2 cannot be mounted")
    group = CGROUPS / "frozen"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(process))
        (group / "cgroup.freeze").write_text("1")
        await becomes_true(lambda: "frozen 1" in (group / "cgroup.events").read_text())
        yield
        (group / "cgroup.freeze").write_text("0")
        (CGROUPS / "cgroup.procs").write_text(str(process))
        group.rmdir()
    finally:
        await sh(f"umount {CGROUPS}")


@contextlib.asynccontextmanager
async def traced(process: int, how: str) -> AsyncIterator[None]:
    async with interpreter("-IS", PTRACER, str(process), how) as tracer:
        assert await tracer.line() == "holds it"
        yield
        assert tracer.process.stdin is not None
        tracer.process.stdin.close()
        assert (await tracer.rest(), await tracer.end()) == ("", 0)


def gdb(process: int) -> AbstractAsyncContextManager[None]:
    return traced(process, "attach")


def strace(process: int) -> AbstractAsyncContextManager[None]:
    return traced(process, "interrupt")


async def assert_lost(running: Program, image: Path) -> None:
    """The server tells what has happened, does what there is left to do, and its index is free."""
    assert await running.end() == 1
    assert STOPPED in await running.rest()
    assert Path(f"{image}.log").read_text().split()[-2:] == ["flush", "unmount"]
    await assert_usable(running.path)


async def assert_served(running: Program, image: Path) -> None:
    """The server goes on as if nothing had happened, up to an unmount in order."""
    await leave_dirty_pages(running.path)
    assert await running.end(signal.SIGTERM) == 0
    assert await running.rest() == ""
    assert image.read_bytes()[:MIB] == DATA


@pytest.mark.parametrize(
    ("stop", "connections"),
    [
        pytest.param(ctrl_z, 1, marks=pytest.mark.core),
        (ctrl_z, 2),
        (freezer, 1),
        (gdb, 1),
        (strace, 2),
    ],
)
async def test_a_stop_is_a_pause_or_the_end(
    stop: Stop, connections: int, attach: str, image: Path
) -> None:
    options = [f"{DEVICES}:Gated", f"--connections={connections}"]
    async with command(*options, IMAGE=str(image)) as running:
        async with held(image):
            read = reading(running.path)
            await logged(image, "held")
            async with stop(running.process.pid):
                if attach == "ioctl":
                    # Nobody waits for the server to go on.
                    with pytest.raises(OSError, match=EIO):
                        await read
                    await assert_unreadable(running.path)
        if attach == "ioctl":
            await assert_lost(running, image)
        else:
            assert await read == bytes(4096)
            await assert_served(running, image)


async def test_a_tracer_that_stops_nothing_does_nothing(image: Path) -> None:
    async with command(f"{DEVICES}:Gated", IMAGE=str(image)) as running:
        async with traced(running.process.pid, "seize"):
            assert await reading(running.path) == bytes(4096)
        await assert_served(running, image)


SUSPEND = "cd /sys/power && echo freezer > pm_test && echo freeze > state; echo none > pm_test"


async def test_a_suspend_is_a_pause_or_the_end(attach: str, image: Path) -> None:
    if not Path("/sys/power/pm_test").exists():
        pytest.skip("this kernel cannot try to suspend")
    delay = Path("/sys/module/suspend/parameters/pm_test_delay")
    delay.write_text("1")  # seconds for which all processes are frozen
    async with command(f"{DEVICES}:Gated", IMAGE=str(image)) as running:
        await sh(SUSPEND)
        if attach == "ioctl":
            await assert_lost(running, image)
        else:
            assert await reading(running.path) == bytes(4096)
            await assert_served(running, image)


@pytest.fixture
def handled() -> AsyncIterator[list[int]]:  # type: ignore[misc]  # a generator, as fixtures are
    """The signals that this process has handled."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    "interrupts",
    [pytest.param(True, marks=pytest.mark.core, id="EINTR"), pytest.param(False, id="SA_RESTART")],
)
async def test_signals_do_nothing(interrupts: bool, handled: list[int]) -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        signal.siginterrupt(signal.SIGUSR1, interrupts)
        server = sysfs.server_thread(mount.index)
        (thread,) = [each for each in threading.enumerate() if each.native_id == server]
        assert thread.ident is not None
        signal.pthread_kill(thread.ident, signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        await becomes_true(lambda: bool(handled))
        assert await reading(mount.path) == bytes(4096)
        assert thread.is_alive()
        await leave_dirty_pages(mount.path)
    assert handled == [signal.SIGUSR1]  # that to the thread is left alone
    assert_stored_and_said_goodbye(disk)
