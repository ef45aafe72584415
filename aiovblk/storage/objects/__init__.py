"""A disk in an object store."""

from .chunk_store import Limits
from .client import AnyStore, ObjectInfo, ObjectStore, ObjectStoreClient
from .codec import KEY_LENGTH
from .device import ObjectStoreDevice
from .disk import create, trust_origins
from .garbage import CheckReport, Garbage, check, collect_garbage
from .snapshots import clone, drop_snapshot, snapshot, snapshots

__all__ = [
    "KEY_LENGTH",
    "AnyStore",
    "CheckReport",
    "Garbage",
    "Limits",
    "ObjectInfo",
    "ObjectStore",
    "ObjectStoreClient",
    "ObjectStoreDevice",
    "check",
    "clone",
    "collect_garbage",
    "create",
    "drop_snapshot",
    "snapshot",
    "snapshots",
    "trust_origins",
]
