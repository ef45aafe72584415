"""Devices that are ready to be mounted, layers for any device, and what is done with both."""

from .around import Intercept
from .blocksize import BlockSize
from .cache import Cache
from .copying import copy
from .faults import Fault, Faults
from .file import FileDevice
from .layer import Layer
from .memory import MemoryDevice
from .mirror import Mirror
from .objects import ObjectStoreDevice
from .overlay import Overlay
from .partition import Partition
from .readonly import ReadOnly
from .retry import Retry
from .shared import Shared
from .stats import Metered
from .web import HTTPDevice

__all__ = [
    "BlockSize",
    "Cache",
    "Fault",
    "Faults",
    "FileDevice",
    "HTTPDevice",
    "Intercept",
    "Layer",
    "MemoryDevice",
    "Metered",
    "Mirror",
    "ObjectStoreDevice",
    "Overlay",
    "Partition",
    "ReadOnly",
    "Retry",
    "Shared",
    "copy",
]
