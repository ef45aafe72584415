"""The Linux side: blocking calls, to be made in threads. No asyncio in here."""

from . import memory, sysfs
from .choice import attach
from .link import Link
from .outside import unmount
from .queue import RequestQueue
from .shrinking import Claims
from .terms import Terms

__all__ = ["Claims", "Link", "RequestQueue", "Terms", "attach", "memory", "sysfs", "unmount"]
