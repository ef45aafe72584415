"""Store objects in a local folder durably: write a temporary file, fsync, link, fsync the folder.

Invariant: an object is durable before it has its name. Otherwise a power failure could leave a name
without data, which is an empty object; ext4 and xfs leave such files. So the data is written to a
temporary file and synced, the file is linked to the object's name, and then the directory is
synced. The temporary name is the object's with ``#1`` (or another number) behind it: the package
``obstore`` uses such names too, and leaves them out of lists.
"""

from __future__ import annotations

import errno
import os
import re
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from ..fsync import Fsync, sync_path

if TYPE_CHECKING:
    from .client import Buffer

_TEMPORARY = re.compile(r".+#\d+")
_OLD = 24 * 3600.0  # seconds, after which a temporary file is no longer being written

# object_store's errors of a folder end so: "... Read-only file system (os error 30)"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


class Directories:
    """Make new names durable, and remember for each directory of a store whether fsync has failed.

    Once fsync() of a directory has failed, nothing is put into it any more: names in it may be lost
    by a power failure, and no later call would report that.

    Concurrency: may be used in any thread.
    """

    def __init__(self) -> None:
        self._durable: set[str] = set()
        self._syncs: dict[str, Fsync] = {}

    def check(self, path: str) -> None:
        """Raise OSError if the directory of this file could not be synced before."""
        self._sync_of(os.path.dirname(path)).check()

    def make_durable(self, root: str, path: str) -> None:
        """Sync the directory that has a new name, and its parents if they may be new.

        Args:
            root: what the path is relative to.
            path: of the file with the new name, which was synced itself.

        """
        folder = os.path.dirname(path)
        self._sync(f"{root}/{folder}")
        while folder and f"{root}/{folder}" not in self._durable:
            parent = os.path.dirname(folder)
            # A directory that cannot be read belongs to another user, so it is older.
            if os.access(f"{root}/{parent}", os.R_OK):
                self._sync(f"{root}/{parent}")
            self._durable.add(f"{root}/{folder}")
            folder = parent

    def _sync(self, directory: str) -> None:
        self._sync_of(directory)(lambda: sync_path(directory))

    def _sync_of(self, directory: str) -> Fsync:
        # setdefault is atomic, so all threads get the same one.
        return self._syncs.setdefault(directory.rstrip("/"), Fsync(directory))


def put_in_folder(
    root: str, path: str, data: Buffer, directories: Directories, *, replaces: bool
) -> None:
    """Store an object durably: its data, its name, and the directories that lead to it.

    Args:
        root: the store's directory.
        path: of the object.
        data: its contents.
        directories: of the store.
        replaces: whether an existing object is replaced.

    Raises:
        FileExistsError: the object exists, and is not to be replaced.
        OSError: no room, another failure, or an fsync that has failed before.

    """
    directories.check(f"{root}/{path}")
    try:
        write_object(f"{root}/{path}", data, replaces=replaces)
    except FileExistsError:
        # It may be our own, of an attempt that failed after that. The caller relies on it from now
        # on, so it has to be durable.
        sync_path(f"{root}/{path}")
        directories.make_durable(root, path)
        raise
    directories.make_durable(root, path)


def write_object(path: str, data: Buffer, *, replaces: bool) -> None:
    """Write a file atomically: it gets its name when its data is durable.

    Args:
        path: of the file; its directories are made.
        data: the contents.
        replaces: whether an existing file is replaced.

    Raises:
        FileExistsError: the file exists, and is not to be replaced.
        OSError: no room, or another failure. An existing file is unchanged.

    """
    temporary, fd = _open_temporary(path)
    try:
        try:
            _write_all(fd, data)
            # By its path, in a new descriptor; while this one is open, the inode keeps an error of
            # the write-back.
            sync_path(temporary)
        finally:
            os.close(fd)
        if replaces:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        with suppress(OSError):  # it was renamed, or is garbage
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
    raise AssertionError  # count() never ends


def _write_all(fd: int, data: Buffer) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(fd, left) :]


def leftovers_in(directory: str, *, delete: bool) -> list[int]:
    """Find old temporary files, which crashed writers have left; for garbage collection.

    Args:
        directory: to look in; its subdirectories are not searched.
        delete: whether to delete the files.

    Returns:
        Bytes of each file.

    """
    sizes = []
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if _TEMPORARY.fullmatch(entry.name) and status.st_mtime < time.time() - _OLD:
                    if delete:
                        os.unlink(entry.path)
                    sizes.append(status.st_size)
    return sizes


def classify_folder_error(failure: Exception, path: str) -> tuple[OSError, bool]:
    """Return a failure of a local folder as an OSError, and False: no retry.

    A full or read-only file system is no network: it answers, and the next attempt fails as well.
    """
    number = failure.errno if isinstance(failure, OSError) else None
    if number is not None:
        return OSError(number, f"{path}: {failure.strerror}"), False  # type: ignore[attr-defined]
    text = next(iter(str(failure).splitlines()), type(failure).__name__)
    found = _OS_ERROR.search(str(failure))
    number = int(found[1]) if found else _ERRNOS.get(type(failure).__name__, errno.EIO)
    return OSError(number, f"{path}: {os.strerror(number) if found else text}"), False


# Of exceptions of obstore whose text has no number.
_ERRNOS = {
    "FileNotFoundError": errno.ENOENT,
    "AlreadyExistsError": errno.EEXIST,
    "PermissionDeniedError": errno.EACCES,
}
