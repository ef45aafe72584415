"""The Linux side: blocking calls, to be made in threads. No asyncio in here."""

from . import locks, memory_safety, sysfs, users
from .attaching import attach, attachment_for_existing, find_by_identity, take_over_orphan
from .attachment import AttachConfig, Attachment, socket_pair
from .claims import ExclusiveClaims
from .netlink_attachment import NetlinkAttachment
from .request_queue import RequestQueue
from .unmounting import unmount

__all__ = [
    "AttachConfig",
    "Attachment",
    "ExclusiveClaims",
    "NetlinkAttachment",
    "RequestQueue",
    "attach",
    "attachment_for_existing",
    "find_by_identity",
    "locks",
    "memory_safety",
    "socket_pair",
    "sysfs",
    "take_over_orphan",
    "unmount",
    "users",
]
