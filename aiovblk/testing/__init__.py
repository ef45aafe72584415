"""The test kit: point it at a device of your own."""

from .check import check_block_device
from .medium import CrashableDisk
from .results import CheckFailed

__all__ = ["CheckFailed", "CrashableDisk", "check_block_device"]
