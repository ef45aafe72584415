"""The kernel's ublk driver: attach and serve /dev/ublkbN by io_uring, without a socket.

The other way to the kernel, beside :mod:`aiovblk.kernel`'s NBD. Commands for the driver block:
make them in threads. Only the :class:`.Queue` belongs into the thread of the event loop that serves
the device, and never waits. No asyncio in this room.

:func:`.attaching.attach` makes an :class:`.UblkAttachment`, which opens its queue, is started,
stopped and closed. One that survives its server is found again by its identity
(:mod:`.identities`), and taken over by :func:`.takeover.take_over_orphan`.
"""

from .attaching import attach, is_privileged, remove_dead
from .attachment import UblkAttachment, disk_name, node
from .identified import IdentifiedAttachment
from .identities import find_by_identity
from .queue import DESCRIPTOR_WORDS, Queue
from .status import numbers, status_of
from .takeover import take_over_orphan
from .unmounting import ensure_released, unmount

__all__ = [
    "DESCRIPTOR_WORDS",
    "IdentifiedAttachment",
    "Queue",
    "UblkAttachment",
    "attach",
    "disk_name",
    "ensure_released",
    "find_by_identity",
    "is_privileged",
    "node",
    "numbers",
    "remove_dead",
    "status_of",
    "take_over_orphan",
    "unmount",
]
