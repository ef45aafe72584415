"""Unmounting a device that another process serves."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal

from .. import interpreter
from ..errors import AttachError
from . import netlink, sysfs, users
from .choice import resolve
from .forcing import force_disconnect
from .ioctl import Ioctl, ioctl
from .usage import busy_error, refuse_if_unclaimed_users, wait_until_free
from .writeback import sync

logger = logging.getLogger("aiovblk")


def unmount(path: str, *, force: bool = False, timeout: float = 30.0) -> None:
    """Unmount a device in order, whoever serves it: write back, disconnect, wait until it is free.

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
        OSError: what the kernel cached could not be written; with ``force`` that is let pass.

    """
    index = resolve(path)
    if sysfs.is_free(index):
        raise AttachError(errno.ENODEV, "not mounted", path)
    if force:
        force_disconnect(index, path, lambda what: logger.debug("%s: %s", path, what))
    else:
        _unmount_in_order(index, path, timeout)


def _unmount_in_order(index: int, path: str, timeout: float) -> None:
    try:
        _unmount_in_child(path, timeout)
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
        if exc.errno == errno.EBUSY:
            raise busy_error(index, path) from None
        if exc.errno in (errno.EPERM, errno.EACCES):
            raise AttachError(exc.errno, "unmounting takes root", path) from None
        raise AttachError(
            exc.errno or errno.EIO,
            f"not unmounted, because not all data can be written back ({exc.strerror}): "
            "the server's log tells why; use --force, and it is lost",
            path,
        ) from exc


def _unmount_in_child(path: str, timeout: float) -> None:
    """Run :func:`disconnect_in_order` in a process that can be left behind.

    A sync that nobody answers cannot be killed, nor can the process whose thread waits in it: it
    would not even exit.

    Raises:
        TimeoutError: it has not ended in time.
        OSError: what it raised.

    """
    output, childs_output = os.pipe()
    command = interpreter.command(
        "from aiovblk.kernel import outside; outside.main(sys.argv[1])", path
    )
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
    """What the child process does: print the error number of the attempt, 0 for none."""
    try:
        disconnect_in_order(path)
    except OSError as exc:
        print(exc.errno, flush=True)
    else:
        print(0, flush=True)


def disconnect_in_order(path: str) -> None:
    """Claim a device, write back what is cached for it, and disconnect it; may wait for ever.

    Raises:
        OSError: EBUSY when it is in use; another when something could not be written.

    """
    index = resolve(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_EXCL)
    try:
        refuse_if_unclaimed_users(index, path)
        sync(index, fd)
        if _is_served_by_thread(index):
            ioctl(fd, Ioctl.NBD_DISCONNECT)
        else:
            # Attached by netlink: nobody waits in NBD_DO_IT, so nobody would clean up.
            netlink.disconnect(index, timeout=30.0)
    finally:
        os.close(fd)


def _is_served_by_thread(index: int) -> bool:
    thread = sysfs.server_thread(index)
    return thread is not None and sysfs.process_of(thread) is not None
