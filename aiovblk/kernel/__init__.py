"""The Linux side: blocking calls, to be made in threads. No asyncio in here."""

from . import sysfs
from .choice import attach, load_driver, resolve
from .link import Link, wait_until_free
from .threads import in_thread

__all__ = [
    "Link",
    "attach",
    "in_thread",
    "load_driver",
    "resolve",
    "sysfs",
    "wait_until_free",
]
