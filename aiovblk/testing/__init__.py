"""The test kit: point it at a device of your own."""

from .check import check_block_device
from .failure import CheckFailed
from .medium import CrashableDisk

__all__ = ["CheckFailed", "CrashableDisk", "check_block_device"]
