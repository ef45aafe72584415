"""Unmount a device that another process serves: gracefully, or by force.

* :func:`unmount` is the entry. Without force it claims the device, writes back and disconnects, in
  a child process that can be left behind when the server does not answer.
* :func:`force_disconnect` takes a device away from its server and its users, by ever stronger
  steps, each with a timeout.
* :func:`kill_openers` ends the processes that keep the index of a dead device taken.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from functools import partial

from .. import atfork, interpreter
from ..errors import AttachError, DeviceBusyError
from ..threads import run_in_daemon_thread
from . import netlink, status, sysfs, users
from .driver import resolve
from .ioctl import Ioctl, ioctl
from .status import DeviceState
from .sysfs import Disk, wait_until_free
from .users import busy_error, refuse_if_unclaimed_users
from .writeback import sync

logger = logging.getLogger("aiovblk")

STEP_TIMEOUT = 3.0
"""Seconds for each step of a forced disconnect, before the next, stronger one."""

SETTLE_TIMEOUT = 0.2
"""Seconds for a server to close the node of a device that is disconnected."""

KILL_TIMEOUT = 2.0
"""Seconds for processes to end after a signal."""

POLL = 0.02  # seconds between looks at all processes

NETLINK_TIMEOUT = 30.0
"""Seconds for the kernel to disconnect a device gracefully, by netlink."""

Report = Callable[[str], object]


def unmount(path: str, *, force: bool = False, timeout: float = 30.0) -> None:
    """Unmount a device that any process serves: write back, disconnect, wait until it is free.

    Blocks; each step for ``timeout`` seconds at most.

    Args:
        path: the device node.
        force: go on although the device is in use, or its server does not answer. What cannot be
            written back is lost.
        timeout: seconds that the server may take for a step.

    Raises:
        DeviceBusyError: it is in use; with ``force``, it is disconnected, but its index stays taken
            until its file system is unmounted, say.
        AttachError: it is not mounted, or its server does not answer.
        OSError: what the kernel cached could not be written; ignored with ``force``.

    """
    index = resolve(path)
    if sysfs.is_free(index):
        raise not_mounted_error(path)
    if force:
        force_disconnect(index, path, lambda step: logger.debug("%s: %s", path, step))
    else:
        _unmount_gracefully(index, path, timeout)


def not_mounted_error(path: str) -> AttachError:
    """Make the error for a device that nothing serves."""
    return AttachError(errno.ENODEV, "not mounted", path)


# Gracefully


def _unmount_gracefully(index: int, path: str, timeout: float) -> None:
    try:
        run_in_child(__name__, path, timeout=timeout)
        if not wait_until_free(index, timeout):
            raise TimeoutError
    except TimeoutError:
        holders = ", ".join(users.users(index))
        raise AttachError(
            errno.ETIMEDOUT,
            f"not unmounted after {timeout:g} s"
            + (f" ({holders})" if holders else "")
            + "; use --force, and what is not written yet is lost",
            path,
        ) from None
    except OSError as exc:
        raise as_unmount_error(exc, index, path) from exc


def as_unmount_error(exc: OSError, disk: Disk, path: str) -> AttachError:
    """Convert what a graceful unmount has failed with; the message says what to do about it."""
    if exc.errno == errno.EBUSY:
        return busy_error(disk, path)
    if exc.errno in (errno.EPERM, errno.EACCES):
        return AttachError(exc.errno, "unmounting takes root", path)
    return AttachError(
        exc.errno or errno.EIO,
        f"not unmounted, because not all data can be written back ({exc.strerror}): "
        "the server's log tells why; use --force, and it is lost",
        path,
    )


def run_in_child(module: str, *words: str, timeout: float) -> None:
    """Run the function ``main`` of a module in a process that can be left behind.

    A sync that is not answered cannot be killed, nor can the process whose thread waits in it: it
    would not even exit.

    Args:
        module: its name; ``main`` takes ``words``, and prints what :func:`print_result` does.
        words: the arguments.
        timeout: seconds.

    Raises:
        TimeoutError: the child has not ended in time.
        OSError: what the child raised.

    """
    output, childs_output = os.pipe()
    command = interpreter.command(f"from {module} import main; main(*sys.argv[1:])", *words)
    try:
        child = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, childs_output, 1)],
        )
    finally:
        os.close(childs_output)
    try:
        if not select.select([output], [], [], timeout)[0]:
            os.kill(child, signal.SIGKILL)
            raise TimeoutError
        answer = os.read(output, 16)
        os.waitpid(child, 0)
    finally:
        os.close(output)
    number = int(answer or errno.EIO)
    if number:
        raise OSError(number, os.strerror(number))


def main(path: str) -> None:
    """Run in the child process: try to disconnect."""
    print_result(partial(disconnect_gracefully, path))


def print_result(step: Callable[[], None]) -> None:
    """Take a step, and print the number of its error, 0 for none."""
    try:
        step()
    except OSError as exc:
        print(exc.errno, flush=True)
    else:
        print(0, flush=True)


def disconnect_gracefully(path: str) -> None:
    """Claim a device, write back its dirty data, and disconnect it. May block for ever.

    Raises:
        OSError: EBUSY if it is in use; another if something could not be written.

    """
    index = resolve(path)
    fd = atfork.open_protected(path, os.O_EXCL)
    try:
        refuse_if_unclaimed_users(index, path)
        sync(index, fd)
        if status.server(index) is not None:
            # It unmounts in order, also if it has taken over what a thread attached that is gone.
            # Netlink would cut it off.
            ioctl(fd, Ioctl.NBD_DISCONNECT)
        else:
            # Attached by netlink, by a process that has ended (nbd-client) and cannot clean up.
            netlink.disconnect(index, timeout=NETLINK_TIMEOUT)
    finally:
        atfork.close_protected(fd)


# By force


def force_disconnect(index: int, path: str, report: Report) -> None:
    """Disconnect a device by force, whatever serves and uses it, and wait until it is free.

    Blocks; for seconds if something hangs.

    Args:
        index: N of /dev/nbdN.
        path: the device node.
        report: called with the name of each step before it is tried, and with its failure.

    Raises:
        DeviceBusyError: it is disconnected, but its index stays taken; the message names the users.
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
            (errno.EPERM, "a forced disconnect takes root")
            if refused
            else (errno.EBUSY, "the kernel does not free it; see its log")
        )
        raise AttachError(number, reason, path)
    ensure_released(index, path)


def ensure_released(index: int, path: str) -> None:
    """Wait until the index of a device that was disconnected by force is free; blocks for seconds.

    No-op if another server has attached it since.

    Args:
        index: N of /dev/nbdN.
        path: the device node.

    Raises:
        DeviceBusyError: its index stays taken; the message names the users.

    """
    if status.state(index) is DeviceState.ALIVE:
        return
    if users.exclusive_users(index) or not wait_until_free(index, STEP_TIMEOUT):
        raise still_held_error(index, path)


def _steps(index: int, path: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the names and functions of the steps, from the gentlest to the strongest."""
    if status.state(index) in (DeviceState.ALIVE, DeviceState.UNKNOWN):
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
    """Wait until the kernel has no server for a device; False if it still has one at the end."""
    deadline = time.monotonic() + seconds
    while not sysfs.is_free(index) and status.state(index) is DeviceState.ALIVE:
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL)
    return True


def still_held_error(disk: Disk, path: str) -> DeviceBusyError:
    """Make the error for a disconnected device whose index is not free; says what frees it."""
    holders = users.users(disk)
    points = users.mount_points(disk)
    openers = [process for process, _ in users.openers(disk)]
    if points:
        point = shlex.quote(points[0])
        until = f"its file system is unmounted (`umount {point}`, or `umount -l {point}`)"
    elif users.exclusive_users(disk):
        until = "they release it"
    elif openers:
        until = f"it is closed (`kill {' '.join(map(str, openers))}`)"
    else:
        until = "a process closes it that cannot be seen"
    reason = "disconnected, but its index stays taken until " + until
    return DeviceBusyError(
        errno.EBUSY, reason + (f": {', '.join(holders)}" if holders else ""), path, holders
    )


# The processes that have it open


def kill_openers(index: int, report: Report) -> None:
    """Kill the processes that have a dead device open: with SIGTERM, then with SIGKILL.

    Their reads and writes of the device fail anyway. Process 1 and this one are left alone.

    Args:
        index: N of /dev/nbdN.
        report: called with each signal before it is sent.

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
