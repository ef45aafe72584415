"""A disk in an object store."""

from .device import ObjectStoreDevice
from .disk import create, trust_origins
from .limits import Limits
from .sealing import KEY_LENGTH
from .snapshots import clone, drop_snapshot, snapshot, snapshots
from .store import AnyStore, ObjectInfo, ObjectStore, ObjectStoreClient
from .upkeep import CheckReport, Garbage, check, collect_garbage

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
