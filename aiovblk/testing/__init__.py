"""Test kit: check a device of your own against the contract of BlockDevice, crashes included."""

from .check import check_block_device
from .crashable_disk import CrashableDisk
from .results import CheckFailed

__all__ = ["CheckFailed", "CrashableDisk", "check_block_device"]
