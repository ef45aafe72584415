"""Devices that are ready to be mounted, layers on top of any device, and :func:`copy`."""

from .blocksize import BlockSize
from .cache import Cache
from .copying import copy
from .faults import Fault, Faults
from .file import FileDevice
from .http import HTTPDevice
from .intercept import Intercept
from .layer import Layer
from .memory import MemoryDevice
from .metered import Metered
from .mirror import Mirror
from .objects import ObjectStoreDevice
from .overlay import Overlay
from .partition import Partition
from .ratelimited import Rate, RateLimited
from .readonly import ReadOnly
from .retry import Retry
from .shared import Shared
from .tracked import Tracked

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
    "Rate",
    "RateLimited",
    "ReadOnly",
    "Retry",
    "Shared",
    "Tracked",
    "copy",
]
