"""Unmounting a device that another process serves."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from typing import TypeVar

from ..errors import AttachError
from . import netlink, sysfs
from .choice import resolve
from .ioctl import Ioctl, ioctl
from .link import busy, sync, wait_until_free
from .threads import in_thread

T = TypeVar("T")

FORCED_TIMEOUT = 3.0
"""Seconds for each step of an unmount by force, before the next, ruder one."""


def unmount(path: str, *, force: bool = False, timeout: float = 30.0) -> None:
    """Unmount a device in order, whoever serves it: write back, disconnect, wait until it is free.

    Blocks; each step for ``timeout`` seconds at most.

    Args:
        path: the device node.
        force: go on although the device is in use, or its server does not answer. What cannot be
            written back is lost.
        timeout: seconds that the server may take for a step.

    Raises:
        DeviceBusyError: it is in use.
        AttachError: it is not mounted, or its server does not answer.
        OSError: what the kernel cached could not be written; with ``force`` that is let pass.

    """
    index = resolve(path)
    if sysfs.is_free(index):
        raise AttachError(errno.ENODEV, "not mounted", path)
    if force:
        _by_force(index, path)
    else:
        _in_order(index, path, timeout)


def _in_order(index: int, path: str, timeout: float) -> None:
    def disconnect() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_EXCL)
        try:
            sync(index, fd)
            if _is_served_by_thread(index):
                ioctl(fd, Ioctl.NBD_DISCONNECT)
            else:
                # Attached by netlink: nobody waits in NBD_DO_IT, so nobody would clean up.
                netlink.disconnect(index, timeout)
        finally:
            os.close(fd)

    try:
        _in_time(disconnect, timeout)
        if not wait_until_free(index, timeout):
            raise FutureTimeoutError
    except FutureTimeoutError:
        holders = ", ".join(sysfs.holders(index))
        raise AttachError(
            errno.ETIMEDOUT,
            f"not unmounted after {timeout:g} s"
            + (f" ({holders})" if holders else "")
            + "; use --force, and what is not written yet is lost",
            path,
        ) from None
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            raise busy(index, path) from None
        if exc.errno in (errno.EPERM, errno.EACCES):
            raise AttachError(exc.errno, "unmounting takes root", path) from None
        raise AttachError(
            exc.errno or errno.EIO,
            f"not unmounted, because not all data can be written back ({exc.strerror}); "
            "use --force, and it is lost",
            path,
        ) from exc


def _is_served_by_thread(index: int) -> bool:
    thread = sysfs.server_thread(index)
    return thread is not None and sysfs.process_of(thread) is not None


def _by_force(index: int, path: str) -> None:
    """Try the gentle steps, each for a short time, then take the device away."""

    def opened(step: Callable[[int], None]) -> Callable[[], None]:
        def run() -> None:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                step(fd)
            finally:
                os.close(fd)

        return run

    steps: list[Callable[[], None]] = [
        opened(lambda fd: sync(index, fd)),
        opened(lambda fd: ioctl(fd, Ioctl.NBD_DISCONNECT)),
        opened(lambda fd: ioctl(fd, Ioctl.NBD_CLEAR_SOCK)),
        lambda: netlink.disconnect(index, FORCED_TIMEOUT),
    ]
    for number, step in enumerate(steps):
        with suppress(OSError, FutureTimeoutError):
            _in_time(step, FORCED_TIMEOUT)
        if number and wait_until_free(index, FORCED_TIMEOUT):
            return
    holders = ", ".join(sysfs.holders(index)) or "by a process that cannot be seen"
    raise AttachError(errno.EBUSY, f"disconnected, but still in use: {holders}", path)


def _in_time(function: Callable[[], T], seconds: float) -> T:
    return in_thread(function).result(seconds)
