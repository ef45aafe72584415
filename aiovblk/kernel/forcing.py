"""Taking a device away from whoever serves it, or does no longer.

What the server has to help with goes first, then NBD_CLEAR_SOCK, which fails what is in flight,
then netlink, which needs no open() of the node: that may hang behind a program that waits there for
the server. Each has a deadline. (Where a server does not read its socket any more, NBD_DISCONNECT
and NBD_CLEAR_SOCK wait for the sender's lock. Closing the server's end would wake the sender; but
that end belongs to another process.)

The index of a device that is disconnected stays taken until the last user has closed the node.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress

from ..errors import AttachError, DeviceBusyError
from ..threads import run_in_daemon_thread
from . import liveness, netlink, sysfs, users
from .ioctl import Ioctl, ioctl
from .liveness import DeviceState
from .usage import wait_until_free
from .writeback import sync

STEP_TIMEOUT = 3.0
"""Seconds for each step, before the next, ruder one."""

SETTLE_TIMEOUT = 0.2
"""Seconds for a server to close the node of a device that is disconnected."""

KILL_TIMEOUT = 2.0
"""Seconds for processes to end that were told to."""

POLL = 0.02  # seconds between looks at all processes

Report = Callable[[str], object]


def force_disconnect(index: int, path: str, report: Report) -> None:
    """Disconnect a device, whoever serves and uses it, and wait until it is free.

    Blocks; for seconds where something hangs.

    Args:
        index: N of /dev/nbdN.
        path: the device node.
        report: called with each step, in words, before it is tried.

    Raises:
        DeviceBusyError: it is disconnected, but its index stays taken; the message says by whom.
        AttachError: it cannot be disconnected.

    """
    refused = False
    for name, step in _steps(index, path):
        try:
            report(name)
            run_in_daemon_thread(step).result(STEP_TIMEOUT)
        except FutureTimeoutError:
            report(f"{name}: no answer in {STEP_TIMEOUT:g} s")
        except OSError as exc:
            report(f"{name}: {exc.strerror}")
            if exc.errno in (errno.EPERM, errno.EACCES):
                refused = True
                continue
        if _is_disconnected(index, STEP_TIMEOUT) and wait_until_free(index, SETTLE_TIMEOUT):
            return
    if not _is_disconnected(index, 0):
        number, reason = (
            (errno.EPERM, "taking a device away takes root")
            if refused
            else (errno.EBUSY, "the kernel does not let go of it; see its log")
        )
        raise AttachError(number, reason, path)
    if users.exclusive_users(index) or not wait_until_free(index, STEP_TIMEOUT):
        raise still_held_error(index, path)


def _steps(index: int, path: str) -> Iterator[tuple[str, Callable[[], None]]]:
    if liveness.state(index) in (DeviceState.ALIVE, DeviceState.UNKNOWN):
        with suppress(OSError, FutureTimeoutError):
            run_in_daemon_thread(lambda: _on_node(path, lambda fd: sync(index, fd))).result(
                STEP_TIMEOUT
            )
        yield "NBD_DISCONNECT", lambda: _on_node(path, lambda fd: ioctl(fd, Ioctl.NBD_DISCONNECT))
    yield "NBD_CLEAR_SOCK", lambda: _on_node(path, lambda fd: ioctl(fd, Ioctl.NBD_CLEAR_SOCK))
    yield "NBD_CMD_DISCONNECT", lambda: netlink.disconnect(index, STEP_TIMEOUT)


def _on_node(path: str, step: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        step(fd)
    finally:
        os.close(fd)


def _is_disconnected(index: int, seconds: float) -> bool:
    """Whether the kernel has no server for a device any more, or not ``seconds`` later."""
    deadline = time.monotonic() + seconds
    while not sysfs.is_free(index) and liveness.state(index) is DeviceState.ALIVE:
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL)
    return True


def still_held_error(index: int, path: str) -> DeviceBusyError:
    """Why the index of a device that is disconnected is not free, and what frees it."""
    holders = users.users(index)
    points = users.mount_points(index)
    openers = [process for process, _ in users.openers(index)]
    if points:
        point = shlex.quote(points[0])
        until = f"its file system is unmounted (`umount {point}`, or `umount -l {point}`)"
    elif users.exclusive_users(index):
        until = "they let go"
    elif openers:
        until = f"it is closed (`kill {' '.join(map(str, openers))}`)"
    else:
        until = "a process closes it that cannot be seen"
    reason = "disconnected, but its index stays taken until " + until
    return DeviceBusyError(
        errno.EBUSY, reason + (f": {', '.join(holders)}" if holders else ""), path, holders
    )


def kill_openers(index: int, report: Report) -> None:
    """End the processes that have a dead device open, with SIGTERM, those that stay with SIGKILL.

    Whatever they read or write there fails. Process 1 and this one are left alone.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process, name in users.openers(index):
            if process not in (1, os.getpid()):
                report(f"{number.name} to process {process} ({name}), which has it open")
                with suppress(OSError):
                    _send(process, index, number)
        if wait_until_free(index, KILL_TIMEOUT):
            return


def _send(process: int, index: int, number: signal.Signals) -> None:
    descriptor = os.pidfd_open(process)
    try:
        # Still the same process, and not another that has been given its number meanwhile.
        if process in (each for each, _ in users.openers(index)):
            signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)
