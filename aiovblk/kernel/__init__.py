"""The Linux side: blocking calls, to be made in threads. No asyncio in here."""

from . import locks, memory, sysfs, users
from .choice import attach, attachment_for_existing, find_by_identity, take_over_orphan
from .link import Attachment
from .netlink_link import NetlinkAttachment
from .outside import unmount
from .pairs import socket_pair
from .queue import RequestQueue
from .shrinking import ExclusiveClaims
from .terms import AttachConfig

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
    "memory",
    "socket_pair",
    "sysfs",
    "take_over_orphan",
    "unmount",
    "users",
]
