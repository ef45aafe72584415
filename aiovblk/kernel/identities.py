"""Identities: the names by which devices that were attached by netlink are found again.

/sys shows the identity of an attached device (``backend``). No lock covers it: two processes may
attach the same one at the same time, at two indices.
"""

from __future__ import annotations

import errno

from ..errors import DeviceBusyError
from . import status, sysfs
from .attachment import Attachment
from .driver import resolve


def find_by_identity(path: str | None, identity: str | None) -> int | None:
    """Return the index of the device that was attached with an identity; None if there is none.

    Raises:
        DeviceBusyError: it is not ``path``.

    """
    if identity is None:
        return None
    for index in sysfs.indices():
        if status.identity(index) == identity:
            if path is not None and resolve(path) != index:
                holder = f"{identity!r} is attached at /dev/nbd{index}"
                raise DeviceBusyError(errno.EBUSY, f"{holder}; mount it there", path, [holder])
            return index
    return None


def refuse_duplicate(attachment: Attachment, identity: str, path: str | None) -> None:
    """Detach again if another process has attached the same identity meanwhile.

    Each process that sees the other gives way; if both do, neither serves what two must not serve.

    Raises:
        DeviceBusyError: there is another device of this identity.

    """
    for other in sysfs.indices():
        if other != attachment.index and status.identity(other) == identity:
            attachment.undo()
            holder = f"{identity!r} has just been attached at /dev/nbd{other}"
            raise DeviceBusyError(errno.EBUSY, holder, path, [holder])
