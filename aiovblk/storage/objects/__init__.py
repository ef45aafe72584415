"""A disk in an object store."""

from .chunks import Limits
from .device import ObjectStoreDevice
from .disk import create
from .store import Objects, ObjectStoreClient

__all__ = ["Limits", "ObjectStoreClient", "ObjectStoreDevice", "Objects", "create"]
