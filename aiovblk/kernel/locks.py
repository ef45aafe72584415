"""A lock file per device: only one process that uses this library attaches /dev/nbdN.

The lock (flock) is released when its process ends, and can be handed over to another one. Its file
names the owner: ``PID:TOKEN``. A new owner writes a new token, from which the watchdog of the last
server sees that the device has been taken over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

from .. import atfork
from ..errors import AttachError
from .sysfs import Disk, disk_name

LOCKS = Path("/run/aiovblk")
"""A directory that only root can write to: in /run/lock any user could take all locks."""


def acquire(disk: Disk) -> int:
    """Take the lock of a device, without waiting.

    Its file does not name this process before :func:`write_owner` does: a process that only finds
    out that a device is taken must not be reported as its server (:func:`.status.holder`).

    Returns:
        A descriptor; closing it releases the lock (:func:`aiovblk.atfork.close_protected`).

    Raises:
        BlockingIOError: another process has it.
        PermissionError: the directory belongs to another user.
        AttachError: other users may write to the directory.

    """
    try:
        make_directory()
        lock = os.open(file(disk), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        if exc.errno == errno.EACCES or isinstance(exc, AttachError):
            raise
        # No /run (a minimal container): the other checks of an attach have to do.
        return atfork.open_protected(os.devnull)
    atfork.protect_fd(lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        atfork.close_protected(lock)
        raise
    return lock


def make_directory() -> None:
    """Make the directory, if it is not there.

    Raises:
        OSError: that is not possible.
        AttachError: other users could take a lock there, or pose as a server.

    """
    LOCKS.mkdir(mode=0o755, exist_ok=True)
    status = os.stat(LOCKS)
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        reason = (
            "others than root may write there, and could pass for a device's server;"
            f" `chown root: {LOCKS}; chmod 755 {LOCKS}`"
        )
        raise AttachError(errno.EPERM, reason, str(LOCKS))


def write_owner(lock: int) -> None:
    """Write this process's id and a new token to a lock file, in place of an earlier owner's."""
    clear_owner(lock)
    with suppress(OSError):
        os.pwrite(lock, f"{os.getpid()}:{secrets.token_hex(8)}\n".encode(), 0)


def clear_owner(lock: int) -> None:
    """Undo :func:`write_owner`: this process does not attach the device after all."""
    with suppress(OSError):
        os.ftruncate(lock, 0)


def owner_token(lock: int) -> str:
    """Return what :func:`write_owner` wrote, which is unique; empty where there are no locks."""
    return os.pread(lock, 64, 0).decode(errors="replace").strip()


def socket_path(disk: Disk) -> Path:
    """Return the path of the Unix socket on which a device's server accepts handover requests."""
    return LOCKS / f"{disk_name(disk)}.socket"


def file(disk: Disk) -> Path:
    """Return the path of the lock file of a device."""
    return LOCKS / f"{disk_name(disk)}.lock"
