"""A disk in an object store (S3, GCS, Azure, Ceph's gateway, a local folder).

From a request to the store: :mod:`.device` splits it into chunks; :mod:`.write_buffer` holds the
dirty ones; :mod:`.writer` flushes them and keeps the lease; :mod:`.chunk_store` reads and stores
chunk objects; :mod:`.client` makes the requests, with retries and renewed credentials. What a disk
consists of: :mod:`.keys`, :mod:`.manifest`, :mod:`.records`, :mod:`.state`, :mod:`.journal`.
Beside it: :mod:`.snapshots`, :mod:`.garbage` (garbage collection), :mod:`.checking`,
:mod:`.describing` and :mod:`.deleting`.
"""

from .checking import CheckReport, check
from .chunk_store import Limits
from .client import AnyStore, ObjectInfo, ObjectStore, ObjectStoreClient
from .codec import KEY_LENGTH
from .deleting import delete
from .describing import DiskDescription, describe
from .device import ObjectStoreDevice
from .disk import create, trust_origins
from .garbage import Garbage, collect_garbage
from .snapshots import clone, drop_snapshot, snapshot, snapshots
from .state import Snapshot

__all__ = [
    "KEY_LENGTH",
    "AnyStore",
    "CheckReport",
    "DiskDescription",
    "Garbage",
    "Limits",
    "ObjectInfo",
    "ObjectStore",
    "ObjectStoreClient",
    "ObjectStoreDevice",
    "Snapshot",
    "check",
    "clone",
    "collect_garbage",
    "create",
    "delete",
    "describe",
    "drop_snapshot",
    "snapshot",
    "snapshots",
    "trust_origins",
]
