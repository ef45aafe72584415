"""What the kernel was told of a device when it was attached."""

from __future__ import annotations

import re

from ..protocol.constants import TransmissionFlag
from . import sysfs


def transmission_flags(index: int) -> TransmissionFlag:
    """The transmission flags: from debugfs, which only root may read, or from what they led to.

    Since Linux 6.12 some of the latter outlive a detach: ROTATIONAL and SEND_WRITE_ZEROES may have
    been meant for an earlier server of the same device.
    """
    directory = sysfs.SYS_BLOCK.parent / f"kernel/debug/nbd/nbd{index}"
    if told := re.match(r"Hex: 0x([0-9a-f]+)", sysfs.read(directory / "flags") or ""):
        return TransmissionFlag(int(told[1], 16))
    return _flags_from_sysfs(index)


def _flags_from_sysfs(index: int) -> TransmissionFlag:
    queue = sysfs.queue_attribute
    seen = {
        TransmissionFlag.READ_ONLY: sysfs.is_read_only(index),
        TransmissionFlag.SEND_FLUSH: queue(index, "write_cache") == "write back",
        TransmissionFlag.SEND_FUA: queue(index, "fua") == "1",
        TransmissionFlag.ROTATIONAL: is_rotational(index),
        TransmissionFlag.SEND_TRIM: (queue(index, "discard_max_bytes") or "0") != "0",
        TransmissionFlag.SEND_WRITE_ZEROES: (
            (queue(index, "write_zeroes_max_bytes") or "0") != "0"
        ),
    }
    flags = TransmissionFlag.HAS_FLAGS
    for flag, is_set in seen.items():
        if is_set:
            flags |= flag
    return flags


def is_rotational(index: int) -> bool:
    """Whether the kernel takes a device for a disk that spins."""
    return sysfs.queue_attribute(index, "rotational") == "1"
