"""A process that backs up a disk in a local folder until it kills itself, if it does.

    python -m tests.support.killed_backup SOURCE KIND TARGET STEPS

It is killed by SIGKILL right before the STEPSth system call that changes files.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiovblk.storage.backup import DiskSource, FileTarget, ObjectTarget, backup
from aiovblk.storage.backup.targets import Target

from .backups import in_small_pieces
from .killed_writer import kill_at

BLOCK, SIZE = 4096, 64 * 4096
CHANGES = ("fsync", "fdatasync", "pwrite", "link", "replace", "rename", "unlink", "mkdir")


def open_target(kind: str, path: str | Path) -> Target:
    """Return a target on this machine: of the kind ``folder`` or ``file``."""
    return FileTarget(path) if kind == "file" else ObjectTarget(f"file://{path}", chunk_size=16384)


def main(source: str, kind: str, target: str, steps: str) -> None:
    """Run until the process is killed, or the backup is complete."""
    with in_small_pieces():
        kill_at(int(steps), CHANGES)
        asyncio.run(backup(DiskSource(f"file://{source}"), open_target(kind, target), requests=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
