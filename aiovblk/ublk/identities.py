"""Identities: the names by which ublk devices are found again, of which the driver keeps a hash.

The driver has 64 bits for its user (``ublksrv_flags``), which it keeps for as long as the device
exists, with a server or without. No lock covers an identity: two processes may make devices of the
same one at the same time (:func:`refuse_duplicate`).
"""

from __future__ import annotations

import errno
import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import suppress

from .. import atfork
from ..errors import AttachError, DeviceBusyError
from ..kernel import locks, procfs, status, sysfs
from . import control
from .attachment import disk_name, node
from .commands import State, UblkDeviceInfo
from .status import numbers

MAX_NUMBER = (1 << 20) - 1
"""The largest N of /dev/ublkbN (the driver's UBLK_MAX_UBLKS)."""

LOCK_TIMEOUT = 2.0
"""Seconds for the last server of a device to end: it may be shutting down."""

_NODE = re.compile(r"/dev/ublkb(0|[1-9][0-9]{0,6})", re.ASCII)
# It is gone by now, another user's, or has no node in this container.
_IS_ANOTHERS = (errno.ENODEV, errno.EPERM, errno.EACCES, errno.ENOENT)
_IS_MARK = 1 << 63  # other programs leave the bits 0, or have small numbers there


def number_of(path: str) -> int:
    """Return N of /dev/ublkbN.

    Raises:
        AttachError: it is no such path.

    """
    found = _NODE.fullmatch(path)
    if found is None or int(found[1]) > MAX_NUMBER:
        reason = f"ublk devices are called /dev/ublkb0 to /dev/ublkb{MAX_NUMBER}"
        raise AttachError(errno.EINVAL, reason, path)
    return int(found[1])


def mark_of(identity: str) -> int:
    """Return the 64 bits that stand for an identity: 63 of a hash, and one that says so."""
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") | _IS_MARK


def find_by_identity(path: str | None, identity: str) -> UblkDeviceInfo | None:
    """Find the device of an identity that has a server, or waits for one. Blocks.

    Args:
        path: where the device has to be, ``/dev/ublkbN``, or None.
        identity: the name that it was made with.

    Returns:
        None if there is none.

    Raises:
        DeviceBusyError: it is not ``path``.
        AttachError: the driver does not say which devices there are.

    """
    for info in _devices(mark_of(identity)):
        if info.state == State.DEAD:
            continue  # nothing can use it: it is being made, or a server has left it
        assert info.number is not None  # it exists
        if path is not None and number_of(path) != info.number:
            holder = f"{identity!r} is attached at {node(info.number)}"
            raise DeviceBusyError(errno.EBUSY, f"{holder}; mount it there", path, [holder])
        return info
    return None


def refuse_duplicate(own: UblkDeviceInfo, path: str | None) -> None:
    """Refuse a device whose lock was taken if another process has one of the same identity.

    Each process that sees the other gives way; if both do, neither serves what two must not serve.

    Raises:
        DeviceBusyError: there is another.
        AttachError: whether there is one cannot be found out.

    """
    for info in _devices(own.mark):
        assert info.number is not None  # it exists
        if info.number == own.number or (info.state == State.DEAD and not _is_locked(info.number)):
            continue
        holder = f"the identity has just been attached at {node(info.number)}"
        raise DeviceBusyError(errno.EBUSY, holder, path, [holder])


def _devices(mark: int) -> Iterator[UblkDeviceInfo]:
    """Yield all devices of an identity that this process may ask about, by number.

    Raises:
        AttachError: the driver does not say whether one has the identity: another could be made.

    """
    for number in numbers():
        try:
            info = control.info(number)
        except OSError as exc:
            if exc.errno in _IS_ANOTHERS:
                continue
            reason = f"whether it has this identity cannot be found out: {exc.strerror}"
            raise AttachError(exc.errno or errno.EIO, reason, node(number)) from exc
        if info.mark == mark:
            yield info


# Locks


def lock_device(number: int) -> int:
    """Take the lock of a device, of which its server may be just about to let go. Blocks.

    Returns:
        A descriptor; closing it releases the lock.

    Raises:
        DeviceBusyError: another process has it, and names itself as the server.
        AttachError: this user may not, or others may write to the locks' directory.

    """
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            return locks.acquire(disk_name(number))
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise served_error(number) from None
        except PermissionError as exc:
            reason = f"{locks.LOCKS} is another user's ({exc.strerror})"
            raise AttachError(exc.errno or errno.EACCES, reason, node(number)) from exc
        time.sleep(sysfs.POLL)


def _is_locked(number: int) -> bool:
    try:
        lock = locks.acquire(disk_name(number))
    except BlockingIOError:
        return True
    except OSError:
        return False
    atfork.close_protected(lock)
    return False


def served_error(number: int) -> DeviceBusyError:
    """Make the error for a device that has a server, which names it where it can be seen."""
    process = status.holder(disk_name(number))
    with suppress(OSError):
        process = process or procfs.process_of(max(control.info(number).server, 0))
    server = "by a process that cannot be seen from here, in another container, say"
    if process is not None:
        server = f"by process {process[0]} ({process[1]})"
    reason = f"already attached, served {server}; unmount it there"
    return DeviceBusyError(errno.EBUSY, reason, node(number), [f"served {server}"])
