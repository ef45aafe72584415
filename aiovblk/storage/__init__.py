"""Devices that are ready to be mounted, and what is done with any device."""

from .copying import copy
from .file import FileDevice
from .memory import MemoryDevice

__all__ = ["FileDevice", "MemoryDevice", "copy"]
