"""A device that cannot be written any more."""

from __future__ import annotations

from ..device import BlockDevice
from .layer import Layer


class ReadOnly(Layer):
    """A device of which only reads come through.

    The kernel is told so, and refuses writes itself.

    Durability: nothing is written.

    Args:
        inner: what is read.

    """

    write = BlockDevice.write
    trim = BlockDevice.trim
    write_zeroes = BlockDevice.write_zeroes

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self.read_only = True
