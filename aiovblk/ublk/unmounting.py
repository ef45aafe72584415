"""Unmount a ublk device that another process serves.

The driver stops a device in use, too, and waits for its server, which is sent what has to be
written back. So :func:`unmount` claims the device first, unless that is to be by force; and the
command is sent by a child process that can be left behind, as for NBD.

The server notices, and removes what is left of its device. A device that has no server is removed
here.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from functools import partial

from .. import atfork
from ..errors import AttachError, DeviceBusyError
from ..kernel import procfs, users
from ..kernel.unmounting import (
    as_unmount_error,
    not_mounted_error,
    print_result,
    run_in_child,
    still_held_error,
)
from ..kernel.users import refuse_if_unclaimed_users
from ..kernel.writeback import sync
from . import control
from .attaching import remove_dead
from .attachment import POLL, STOP_TIMEOUT, char_directory, disk_name
from .commands import RECOVERY, State, UblkDeviceInfo
from .identities import number_of
from .status import exists, has_disk
from .stopping import stop_unused

RELEASE_TIMEOUT = 3.0
"""Seconds for a server to remove its device once that is stopped."""

_FORCE = "force"


def unmount(path: str, *, force: bool = False, timeout: float = 30.0) -> None:
    """Unmount a device that any process serves: write back, stop, wait until it is gone.

    Blocks, for ``timeout`` and some seconds at most.

    Args:
        path: the device node, ``/dev/ublkbN``.
        force: go on although the device is in use, and although something cannot be written back,
            which is lost. Its file systems are synced, and see errors from then on.
        timeout: seconds that the server may take to answer what is written back.

    Raises:
        DeviceBusyError: it is in use; with ``force``, it is stopped, but a file system is still
            mounted on it.
        AttachError: it is not mounted, its server does not answer, this process may not, or what
            the kernel has cached cannot be written.

    """
    number = number_of(path)
    info = _info(number, path)
    if info.state == State.DEAD:
        _remove(number, path)
        return
    if info.state != State.LIVE and not force:
        reason = "it waits for another server; use --force, and what is not written yet is lost"
        raise AttachError(errno.ENOTCONN, reason, path)
    try:
        run_in_child(__name__, path, _FORCE if force else "", timeout=timeout)
    except TimeoutError:
        raise _hanging_error(info, path, timeout) from None
    except OSError as exc:
        raise _as_stop_error(exc, number, path) from exc
    _wait_until_removed(number)
    if force:
        ensure_released(number, path)


def _info(number: int, path: str) -> UblkDeviceInfo:
    if not exists(number):
        raise not_mounted_error(path)
    try:
        return control.info(number)
    except OSError as exc:
        if exc.errno == errno.ENODEV:
            raise not_mounted_error(path) from None
        raise _as_stop_error(exc, number, path) from exc


def _as_stop_error(exc: OSError, number: int, path: str) -> AttachError:
    if exc.errno in (errno.EPERM, errno.EACCES):
        reason = "unmounting takes root, or the user who has mounted it"
        return AttachError(exc.errno, reason, path)
    if exc.errno in (errno.ENOENT, errno.ENXIO):
        if not has_disk(number):  # its server was faster
            return not_mounted_error(path)
        reason = (
            f"it, or {control.char_node(number)}, has no node here: unmount it where it was"
            " mounted; in a container nodes do not appear by themselves"
        )
        return AttachError(exc.errno, reason, path)
    return as_unmount_error(exc, disk_name(number), path)


def _hanging_error(info: UblkDeviceInfo, path: str, timeout: float) -> AttachError:
    server = procfs.process_of(info.server) if info.server > 0 else None
    name = f"its server, process {server[0]} ({server[1]})," if server else "its server"
    if server and procfs.is_stopped(server[0]):
        # Linux 6.12 oopses when a server is killed to which requests have come while it was stopped
        # (io_fallback_tw in do_exit).
        reason = f"{name} is stopped: continue it by `kill -CONT {server[0]}`, and do not kill it"
    else:
        ending = f"`kill -9 {server[0]}`" if server else "ending it"
        reason = (
            f"{name} does not answer what is written back; {ending} frees this device and all"
            " others that it serves, and what is not written yet is lost"
        )
    return AttachError(errno.ETIMEDOUT, f"not unmounted after {timeout:g} s: {reason}", path)


# In the child process


def main(path: str, force: str) -> None:
    """Run in the child process: try to stop the device."""
    print_result(partial(stop_by_force if force else stop_gracefully, path))


def stop_gracefully(path: str) -> None:
    """Claim a device, write back its dirty data, and stop it. May block for ever.

    Raises:
        OSError: EBUSY if it is in use; another if something could not be written, or may not be.

    """
    disk = disk_name(number_of(path))
    fd = atfork.open_protected(path, os.O_EXCL)
    try:
        refuse_if_unclaimed_users(disk, path)
        sync(disk, fd)
        info = control.info(number_of(path))
        if RECOVERY not in info.flags:
            _stop(number_of(path))
            return
    finally:
        atfork.close_protected(fd)
    if not stop_unused(control.ControlledDevice(number_of(path), info.flags)):
        # Mere readers and writers do not keep a device from being unmounted.
        _sync(number_of(path), path)
        _stop(number_of(path))


def stop_by_force(path: str) -> None:
    """Write back what can be, and stop a device, in use or not. May block for ever.

    Raises:
        OSError: the driver refuses.

    """
    number = number_of(path)
    with suppress(OSError):
        if control.info(number).state == State.LIVE:
            # Stopping writes back as well, but not of a device that another server may recover.
            _sync(number, path)
    _stop(number)


def _sync(number: int, path: str) -> None:
    fd = atfork.open_protected(path)
    try:
        sync(disk_name(number), fd)
    finally:
        atfork.close_protected(fd)


def _stop(number: int) -> None:
    try:
        info = control.info(number)
        control.ControlledDevice(number, info.flags).stop(STOP_TIMEOUT)
    except OSError as exc:
        if exc.errno != errno.ENODEV:  # it is gone
            raise


# Once it is stopped


def _wait_until_removed(number: int) -> None:
    """Let the server remove its device, which it has open yet; else do that here."""
    deadline = time.monotonic() + RELEASE_TIMEOUT
    while char_directory(number).exists():
        if time.monotonic() > deadline:
            remove_dead(number)
            return
        time.sleep(POLL)


def _remove(number: int, path: str) -> None:
    """Remove a device that has no disk.

    Raises:
        DeviceBusyError: a process is just about to start it.
        AttachError: it cannot be removed.

    """
    if remove_dead(number) or not exists(number):
        return
    if _info(number, path).server > 0:
        raise DeviceBusyError(errno.EBUSY, "the device is just being attached", path)
    raise AttachError(errno.EBUSY, "the driver does not remove the device; see its log", path)


def ensure_released(number: int, path: str) -> None:
    """Check that no file system is left mounted on a device that was stopped by force.

    No-op if there is a device of this number again.

    Args:
        number: N of /dev/ublkbN.
        path: the device node.

    Raises:
        DeviceBusyError: there is one; the message says what frees the number.

    """
    disk = disk_name(number)
    if not has_disk(number) and users.exclusive_users(disk):
        raise still_held_error(disk, path)
