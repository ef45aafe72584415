"""A disk in an object store (S3, GCS, Azure, Ceph's gateway, a local folder).

From a request to the store: :mod:`.device` splits it into chunks; :mod:`.write_buffer` holds what
is dirty; :mod:`.writer` flushes it and keeps the lease; :mod:`.compactor` folds and merges what
flushes leave; :mod:`.view` knows where each block is; :mod:`.chunk_store` reads and stores chunks
and segments, :mod:`.object_reader` parts of them; :mod:`.client` makes the requests, with retries
and renewed credentials. What a disk consists of: :mod:`.keys`, :mod:`.manifest`, :mod:`.records`,
:mod:`.extents`, :mod:`.state`, :mod:`.journal`, :mod:`.frames`. What has changed since a snapshot:
:mod:`.comparing`, :mod:`.diffing`, :mod:`.snapshot_bitmaps`. Beside it: :mod:`.snapshots`,
:mod:`.garbage` (garbage collection), :mod:`.checking`, :mod:`.convert`, :mod:`.describing`
and :mod:`.deleting`.
"""

from .checking import CheckReport, check
from .client import AnyStore, ObjectInfo, ObjectStore, ObjectStoreClient
from .codec import KEY_LENGTH
from .convert import convert
from .deleting import delete
from .describing import DiskDescription, describe
from .device import ObjectStoreDevice
from .diffing import ChangedExtent, Difference, DiffTotals, diff
from .disk import create, trust_origins
from .garbage import Garbage, collect_garbage
from .limits import Limits
from .snapshots import clone, drop_snapshot, snapshot, snapshots
from .state import Snapshot

__all__ = [
    "KEY_LENGTH",
    "AnyStore",
    "ChangedExtent",
    "CheckReport",
    "DiffTotals",
    "Difference",
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
    "convert",
    "create",
    "delete",
    "describe",
    "diff",
    "drop_snapshot",
    "snapshot",
    "snapshots",
    "trust_origins",
]
