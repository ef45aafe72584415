"""The Linux side: attach, watch, take over and detach /dev/nbdN.

Nearly all calls block, some until the server has answered requests: make them in threads, never in
the thread of the event loop that serves the device. No asyncio in this room.

The ordinary path: :func:`.attaching.attach` makes an :class:`.Attachment` (by ioctl or by netlink),
which is started, waited for, synced, disconnected and closed.
"""

from . import locks, memory_safety, partitions, reconnecting, resizing, users
from .attached_disk import AttachedDisk
from .attaching import attach
from .attachment import AttachConfig, Attachment, socket_pair
from .identities import find_by_identity
from .netlink_attachment import NetlinkAttachment
from .request_queue import RequestQueue
from .takeover import attachment_for_existing, take_over_orphan
from .unmounting import unmount

__all__ = [
    "AttachConfig",
    "AttachedDisk",
    "Attachment",
    "NetlinkAttachment",
    "RequestQueue",
    "attach",
    "attachment_for_existing",
    "find_by_identity",
    "locks",
    "memory_safety",
    "partitions",
    "reconnecting",
    "resizing",
    "socket_pair",
    "take_over_orphan",
    "unmount",
    "users",
]
