"""Who would lose something when a live device becomes smaller.

The kernel asks nobody: a mounted file system finds out when a request beyond the end fails.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

from .. import atfork
from ..errors import DeviceBusyError
from . import sysfs, users


class ExclusiveClaims:
    """Exclusive opens, which keep others from mounting or holding what is about to go.

    Concurrency: one thread adds; any may release, before, meanwhile or after.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._fds: list[int] = []
        self._released = False

    def add(self, path: str) -> bool:
        """Claim a node; false when somebody holds it, or for a whole device a partition of it.

        Raises:
            OSError: it cannot be opened.

        """
        try:
            fd = atfork.open_protected(path, os.O_EXCL)
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                return False
            raise
        with self._guard:
            if not self._released:
                self._fds.append(fd)
                return True
        atfork.close_protected(fd)  # opened too late
        return True

    def release(self) -> None:
        """Give up all that are claimed, and claim no more. May wait: a last close writes back."""
        with self._guard:
            self._released = True
            fds, self._fds = self._fds, []
        for fd in fds:
            atfork.close_protected(fd)


def claim_beyond(index: int, path: str, size: int, claims: ExclusiveClaims) -> None:
    """Claim what reaches beyond a smaller size of a device.

    Args:
        index: N of /dev/nbdN.
        path: the device node.
        size: bytes that are to be left.
        claims: takes the claims.

    Raises:
        DeviceBusyError: a file system, swap, another device or a program has the whole device, or
            a partition that ends beyond ``size``, for itself; or a loop device lies on it, or it
            is exported. Mere readers and writers do not count.
        OSError: a node cannot be opened.

    """
    beyond = _partitions_beyond(index, size)
    if holders := users.shared_users(index, [f"nbd{index}", *beyond]):
        raise _in_use_error(path, size, holders)
    if claims.add(path):
        return
    # The kernel lets somebody have the whole device or others its partitions, not both
    # (bd_may_claim). So if a partition that stays is held, only the partitions matter.
    within = [name for name in sysfs.partitions(index) if name not in beyond]
    holders = users.exclusive_users(index, [f"nbd{index}", *beyond])
    if holders or not users.exclusive_users(index, within):
        raise _in_use_error(path, size, holders or users.users(index))
    for name in beyond:
        if not claims.add(f"/dev/{name}"):
            raise _in_use_error(path, size, users.users(index, [name]))


def _partitions_beyond(index: int, size: int) -> list[str]:
    return [name for name, end in _ends(index) if end > size]


def _ends(index: int) -> Iterator[tuple[str, int]]:
    """Each partition, and at which byte of the device it ends."""
    for name in sysfs.partitions(index):
        begin, length = (
            int(sysfs.partition_attribute(index, name, attribute) or 0) * sysfs.SECTOR
            for attribute in ("start", "size")
        )
        yield name, begin + length


def _in_use_error(path: str, size: int, holders: list[str]) -> DeviceBusyError:
    reason = f"it cannot shrink to {size} bytes while what lies beyond is in use"
    words = f": {', '.join(holders)}" if holders else ""
    return DeviceBusyError(errno.EBUSY, reason + words, path, holders)
