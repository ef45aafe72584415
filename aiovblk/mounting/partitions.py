"""Wait for the nodes of a device's partitions (the option ``partitions``)."""

from __future__ import annotations

import errno
from functools import partial

from .. import kernel
from ..errors import AttachError
from .attaching import ATTACH_TIMEOUT
from .deadlines import StoppableSteps

PARTITIONS_TIMEOUT = 10.0
"""Seconds for the nodes of partitions to appear, which take the kernel milliseconds."""


async def wait_for_partitions(steps: StoppableSteps, attachment: kernel.AttachedDisk) -> None:
    """Wait until the node of each partition can be opened, of a device that is live.

    Raises:
        StoppedError: the mount was stopped meanwhile.
        AttachError: the table cannot be read, or a node does not appear.

    """
    wait = partial(kernel.partitions.wait_for_partitions, attachment, PARTITIONS_TIMEOUT)
    try:
        await steps.call(ATTACH_TIMEOUT + PARTITIONS_TIMEOUT, wait, timeout_after_stop=0)
    except AttachError:
        raise
    except OSError as exc:
        reason = f"its partition table cannot be read: {exc.strerror}"
        raise AttachError(exc.errno or errno.EIO, reason, attachment.path) from exc
