"""Incremental backups of any device, and restores.

::

    source = DiskSource("s3://bucket/disk")
    target = ObjectTarget("s3://backups/disk", key=key)
    report = await backup(source, target, keep=Keep(daily=7, weekly=4))

    await restore(target, device)

From a source to a target: :mod:`.sources` opens a state of the source; :mod:`.states` says which
states a target holds, and may hold after an unfinished run; :mod:`.spans` plans what has to be
copied, :mod:`.moving` copies it; :mod:`.running` is all of it, and :mod:`.restoring` the way back.
Targets: :mod:`.object_target` (a disk in an object store, with a snapshot for each backup),
:mod:`.raw_target` (a file or a device, with :mod:`.state_folder`, :mod:`.digests` and
:mod:`.applying` beside it).
:mod:`.retention` says which backups are kept.
"""

from .errors import BackupError
from .object_target import ObjectTarget
from .raw_target import DeviceTarget, FileTarget
from .restoring import RestoreReport, restore
from .retention import Keep
from .running import BackupReport, backup
from .sources import DeviceSource, DiskSource
from .states import Backup

__all__ = [
    "Backup",
    "BackupError",
    "BackupReport",
    "DeviceSource",
    "DeviceTarget",
    "DiskSource",
    "FileTarget",
    "Keep",
    "ObjectTarget",
    "RestoreReport",
    "backup",
    "restore",
]
