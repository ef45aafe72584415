"""Stop a device that survives its server, and lose nothing that was written to it.

With the driver's recovery flags STOP_DEV discards what the kernel has cached for a device, in place
of writing it back. So a device that is not in use is stopped by TRY_STOP_DEV, which the driver
refuses while anything has the node open: the last one that closes it writes back. What is in use is
to be written back just before STOP_DEV.
"""

from __future__ import annotations

import errno
import time

from .attachment import POLL, STOP_TIMEOUT
from .control import ControlledDevice

UNUSED_TIMEOUT = 1.0
"""Seconds for others to close a device that is being unmounted, as udev does."""


def stop_unused(device: ControlledDevice) -> bool:
    """Stop a device as soon as nothing has it open; the caller neither. Blocks.

    Returns:
        Whether it is stopped; False if something still has it open.

    Raises:
        OSError: the driver refuses.

    """
    deadline = time.monotonic() + UNUSED_TIMEOUT
    while True:
        try:
            device.stop_unused(STOP_TIMEOUT)
        except OSError as exc:
            if exc.errno == errno.ENODEV:  # it is gone
                return True
            if exc.errno != errno.EBUSY:
                raise
        else:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
