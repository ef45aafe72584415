"""Devices that are ready to be mounted, and what is done with any device."""

from .copying import copy
from .file import FileDevice
from .layer import Layer
from .memory import MemoryDevice
from .overlay import Overlay
from .shared import Shared

__all__ = ["FileDevice", "Layer", "MemoryDevice", "Overlay", "Shared", "copy"]
