"""Make a device read-only."""

from __future__ import annotations

from ..device import BlockDevice
from .layer import Layer


class ReadOnly(Layer):
    """Forwards reads only.

    The device is announced as read-only, so the kernel refuses writes itself.

    Durability: nothing is written.

    Args:
        inner: the device below.

    """

    passes_bitmaps = True

    write = BlockDevice.write
    trim = BlockDevice.trim
    write_zeroes = BlockDevice.write_zeroes

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self.read_only = True
