"""The Linux side: blocking calls, to be made in threads. No asyncio in here."""

from . import sysfs
from .choice import attach
from .link import Link
from .outside import unmount
from .threads import in_thread

__all__ = ["Link", "attach", "in_thread", "sysfs", "unmount"]
