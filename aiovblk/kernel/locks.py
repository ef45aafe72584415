"""A lock per index, which keeps programs that use this library apart, and tells who has it.

It goes away with the process, and can be handed to another one.
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
from . import sysfs

LOCKS = Path("/run/aiovblk")
"""A directory that only root can write to: in /run/lock anybody could take all locks."""


def acquire(index: int) -> int:
    """Take the lock of an index, which :func:`write_owner` then tells others of.

    Until then :func:`holder` names nobody: who only finds out that a device is taken is not the one
    who has it.

    Returns:
        A descriptor; closing it gives the lock back (:func:`aiovblk.atfork.close`).

    Raises:
        BlockingIOError: somebody else has it.
        PermissionError: the directory is another user's.
        AttachError: others may write to it.

    """
    try:
        LOCKS.mkdir(mode=0o755, exist_ok=True)
        _check_is_private()
        lock = os.open(_file(index), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        if exc.errno == errno.EACCES or isinstance(exc, AttachError):
            raise
        # No /run (a minimal container): other checks have to do.
        return atfork.open_protected(os.devnull)
    atfork.protect_fd(lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        atfork.close_protected(lock)
        raise
    return lock


def _check_is_private() -> None:
    """Refuse a directory in which others could take a lock, or answer in a server's place."""
    status = os.stat(LOCKS)
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        reason = (
            "others than root may write there, and could pass for a device's server;"
            f" `chown root: {LOCKS}; chmod 755 {LOCKS}`"
        )
        raise AttachError(errno.EPERM, reason, str(LOCKS))


def write_owner(lock: int) -> None:
    """Note that this process has a lock, which may have been another one's."""
    clear_owner(lock)
    with suppress(OSError):
        os.pwrite(lock, f"{os.getpid()}:{secrets.token_hex(8)}\n".encode(), 0)


def clear_owner(lock: int) -> None:
    """Take back what :func:`write_owner` noted: this process does not attach the device after all."""
    with suppress(OSError):
        os.ftruncate(lock, 0)


def owner_token(lock: int) -> str:
    """What a lock was signed with, a word like no other; nothing where there are no locks."""
    return os.pread(lock, 64, 0).decode(errors="replace").strip()


def holder(index: int) -> tuple[int, str] | None:
    """The process that has the lock of an index, and its name; None if nobody has it."""
    try:
        lock = os.open(_file(index), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        process = owner_token(lock).partition(":")[0]
        return sysfs.process_of(int(process)) if process.isdigit() else None
    finally:
        os.close(lock)
    return None


def server(index: int) -> tuple[int, str] | None:
    """The process that serves a device, as far as it can be seen, and its name.

    That is who attached it, or who has taken it over since.
    """
    thread = sysfs.server_thread(index)
    if thread is None:
        return None
    return sysfs.process_of(thread) or holder(index)


def socket_path(index: int) -> Path:
    """Where the server of an index can be asked to hand it over."""
    return LOCKS / f"nbd{index}.socket"


def _file(index: int) -> Path:
    return LOCKS / f"nbd{index}.lock"
