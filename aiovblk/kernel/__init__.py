"""The Linux side: blocking calls, to be made in threads. No asyncio in here."""

from . import sysfs
from .choice import attach
from .link import Link
from .outside import unmount
from .queue import RequestQueue
from .threads import in_thread

__all__ = ["Link", "RequestQueue", "attach", "in_thread", "sysfs", "unmount"]
