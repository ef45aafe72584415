"""Devices that are ready to be mounted, and what is done with any device."""

from .cache import Cache
from .copying import copy
from .file import FileDevice
from .layer import Layer
from .memory import MemoryDevice

__all__ = ["Cache", "FileDevice", "Layer", "MemoryDevice", "copy"]
