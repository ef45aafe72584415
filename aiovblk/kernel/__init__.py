"""The Linux side: blocking calls, to be made in threads. No asyncio in here."""

from . import locks, memory, sysfs, users
from .choice import adopt, attach, find, taken_over
from .link import Link
from .netlink_link import NetlinkLink
from .outside import unmount
from .pairs import socket_pair
from .queue import RequestQueue
from .shrinking import Claims
from .terms import Terms

__all__ = [
    "Claims",
    "Link",
    "NetlinkLink",
    "RequestQueue",
    "Terms",
    "adopt",
    "attach",
    "find",
    "locks",
    "memory",
    "socket_pair",
    "sysfs",
    "taken_over",
    "unmount",
    "users",
]
