"""Whether a device is in use: by whom, and until when."""

from __future__ import annotations

import errno
import time

from ..errors import DeviceBusyError
from . import sysfs, users


def wait_until_free(index: int, seconds: float, server: int | None = None) -> bool:
    """Wait until a device is no longer attached; false if it still is after ``seconds``.

    Args:
        index: of the device.
        seconds: for which to wait.
        server: the thread that attached it (:func:`.sysfs.server_thread`): if it has been attached
            by another one since, it was free. None for whoever it is.

    """
    deadline = time.monotonic() + seconds
    while not sysfs.is_free(index):
        if server is not None and sysfs.server_thread(index) not in (None, server):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(sysfs.POLL)
    return True


def busy_error(index: int, path: str) -> DeviceBusyError:
    """The exception that names who uses a device that is claimed."""
    holders = users.users(index) or [users.UNKNOWN_USER]
    reason = f"the device is in use: {', '.join(holders)}"
    return DeviceBusyError(errno.EBUSY, reason, path, holders)


def refuse_if_unclaimed_users(index: int, path: str) -> None:
    """Look for those who use a device and claim nothing, once it has been claimed.

    (Whoever begins to while this looks is not found: the kernel lets him, and tells nobody.)

    Raises:
        DeviceBusyError: there are some.

    """
    if users.shared_users(index):
        raise busy_error(index, path)
