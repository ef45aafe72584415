"""Call fsync() so that a failure is never forgotten; create files with a durable name."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from threading import Lock


class Fsync:
    """Coalesces the calls of fsync() for one file or directory, and fails all after one failure.

    After a failed write-back the kernel marks the pages clean, and reports the error once to each
    open file (Documentation/filesystems/vfs.rst, "Handling errors during writeback"). So if two
    threads sync one file at the same time, only one gets the error, and the next call succeeds
    although data was lost. Therefore:

    * One call at a time (group commit): all callers that wait while one runs share the next one.
    * Once a call has failed, all later ones fail. To continue, open the file again, and read what
      it holds.

    Concurrency: may be called from any threads.

    Args:
        path: of the file, for error messages.

    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._count_lock = Lock()
        self._sync_lock = Lock()
        self._requested = self._covered = 0  # calls so far, and how many of them are durable
        self._error = 0

    def check(self) -> None:
        """Raise OSError if an earlier call has failed."""
        if self._error:
            reason = (
                f"{self._path} has lost data in an earlier flush that failed:"
                " open it again, and check what it holds"
            )
            raise OSError(self._error, reason)

    def __call__(self, sync: Callable[[], object]) -> None:
        """Call ``sync``, or share a call that began after this one.

        Raises:
            OSError: the call has failed, or an earlier one has.

        """
        with self._count_lock:
            self._requested += 1
            number = self._requested
        with self._sync_lock:
            self.check()
            if self._covered >= number:
                return
            with self._count_lock:
                covered = self._requested
            try:
                sync()
            except OSError as exc:
                self._error = exc.errno or errno.EIO
                raise
            self._covered = covered


def sync_path(path: str) -> None:
    """Open a file or directory, and fsync() it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory_of(path: str | os.PathLike[str]) -> None:
    """Make the name of a new file durable by fsync() of its directory, if that can be opened."""
    with suppress(PermissionError):  # of open(): fsync() needs a descriptor
        sync_path(os.path.dirname(os.path.abspath(path)))


def create_file(path: str | os.PathLike[str], size: int) -> None:
    """Create a sparse file of ``size`` bytes with a durable name, accessible to its owner only.

    Its mode is 0600 whatever the umask: the contents of a disk are private.

    Raises:
        FileExistsError: the file exists; it is left unchanged.
        OSError: the file cannot be created; then none is left.

    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
        sync_directory_of(path)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def create_if_missing(path: str | os.PathLike[str], size: int) -> bool:
    """Create the file, or give an empty one its size; make its name durable.

    Returns:
        Whether the file was missing or empty.

    """
    if os.path.exists(path) and os.path.getsize(path):
        return False
    try:
        create_file(path, size)
    except FileExistsError:  # an empty file, created for this purpose
        with open(path, "ab") as file:
            file.truncate(size)
            os.fsync(file.fileno())
        sync_directory_of(path)
    return True
