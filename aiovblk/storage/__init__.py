"""Devices that are ready to be mounted."""

from .file import FileDevice
from .memory import MemoryDevice

__all__ = ["FileDevice", "MemoryDevice"]
