"""A local folder as an object store: an object is durable before it has its name.

A name that is there before its data would, after a power failure, be that of an empty object; ext4
and xfs leave such files. So an object is written to a file of another name, which is synced, then
linked to its name, and then the directory is synced. The other name is the object's with ``#1``
behind it: the package ``obstore`` uses these too, and leaves them out of lists.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from ..fsync import Fsync

if TYPE_CHECKING:
    from .client import Buffer

SyncPath = Callable[[str], None]
"""Syncs the file or directory that is there."""

_TEMPORARY = re.compile(r".+#\d+")
_OLD = 24 * 3600.0  # seconds, after which a temporary file is no longer being written

# object_store's errors of a folder end so: "... Read-only file system (os error 30)"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


class Directories:
    """What is known of the directories of a local store.

    Once fsync() of one has failed, nothing can be put into it any more: names that are in it may be
    lost by a power failure, and no later call would tell.
    """

    def __init__(self) -> None:
        self._durable: set[str] = set()
        self._syncs: dict[str, Fsync] = {}

    def check(self, path: str) -> None:
        """Raise OSError if the directory of this file could not be synced before."""
        self._sync_of(os.path.dirname(path)).check()

    def make_durable(self, root: str, path: str, sync: SyncPath) -> None:
        """Sync the directory that has a new name, and those that lead to it if they may be new.

        Args:
            root: what the path is relative to.
            path: of the file with the new name, which was synced itself.
            sync: does it.

        """
        folder = os.path.dirname(path)
        self._sync(f"{root}/{folder}", sync)
        while folder and f"{root}/{folder}" not in self._durable:
            parent = os.path.dirname(folder)
            if os.access(f"{root}/{parent}", os.R_OK):  # else it is older, and another's
                self._sync(f"{root}/{parent}", sync)
            self._durable.add(f"{root}/{folder}")
            folder = parent

    def _sync(self, directory: str, sync: SyncPath) -> None:
        self._sync_of(directory)(lambda: sync(directory))

    def _sync_of(self, directory: str) -> Fsync:
        # One step, so that all threads have the same.
        return self._syncs.setdefault(directory.rstrip("/"), Fsync(directory))


def write_object(path: str, data: Buffer, *, replaces: bool, sync: SyncPath) -> None:
    """Write a file, and give it its name when its data is durable.

    Args:
        path: of the file; its directories are made.
        data: the contents.
        replaces: whether one that is there is replaced.
        sync: makes the data durable.

    Raises:
        FileExistsError: there is one, and it is not to be replaced.
        OSError: no room, or another failure. What was there is left as it was.

    """
    temporary, fd = _open_temporary(path)
    try:
        try:
            _write_all(fd, data)
            # By its name; while it is open here, its inode keeps an error of the write-back.
            sync(temporary)
        finally:
            os.close(fd)
        if replaces:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        with suppress(OSError):  # it is not there, or garbage
            os.unlink(temporary)


def _open_temporary(path: str) -> tuple[str, int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    for number in count(1):
        temporary = f"{path}#{number}"
        with suppress(FileExistsError):
            try:
                return temporary, os.open(temporary, flags, 0o600)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                return temporary, os.open(temporary, flags, 0o600)
    raise AssertionError  # there is always another number


def _write_all(fd: int, data: Buffer) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(fd, left) :]


def leftovers_in(directory: str, *, delete: bool) -> list[int]:
    """Find what crashed writers have left under temporary names.

    Args:
        directory: to look in; those in it are not.
        delete: whether to delete it.

    Returns:
        Bytes of each file.

    """
    sizes = []
    with suppress(FileNotFoundError), os.scandir(directory) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if _TEMPORARY.fullmatch(entry.name) and status.st_mtime < time.time() - _OLD:
                    if delete:
                        os.unlink(entry.path)
                    sizes.append(status.st_size)
    return sizes


def classify_folder_error(failure: Exception, path: str) -> tuple[OSError, bool]:
    """Return a failure of a local folder as an OSError, and that it will not pass by itself.

    A full or read-only file system is no network: it answers, and says the same again.
    """
    number = failure.errno if isinstance(failure, OSError) else None
    if number is not None:
        return OSError(number, f"{path}: {failure.strerror}"), False  # type: ignore[attr-defined]
    text = next(iter(str(failure).splitlines()), type(failure).__name__)
    found = _OS_ERROR.search(str(failure))
    number = int(found[1]) if found else _ERRNOS.get(type(failure).__name__, errno.EIO)
    return OSError(number, f"{path}: {os.strerror(number) if found else text}"), False


# Of the exceptions of obstore that say nothing else.
_ERRNOS = {
    "FileNotFoundError": errno.ENOENT,
    "AlreadyExistsError": errno.EEXIST,
    "PermissionDeniedError": errno.EACCES,
}
