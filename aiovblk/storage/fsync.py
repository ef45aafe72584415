"""fsync(), which must not succeed once it has failed, and the names of new files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from threading import Lock


class Fsync:
    """The calls of fsync() for one file or directory, from any threads.

    The kernel takes pages for clean that it could not write, and reports that once to each open
    file (Documentation/filesystems/vfs.rst, "Handling errors during writeback"). So of two threads
    that sync one file at the same time only one is told, and the next call succeeds on top of what
    was lost. Therefore:

    * One call at a time. Who waits for his turn is served by a call that began after he asked.
    * Once one has failed, all fail. Whoever wants to go on opens the file anew, and reads what is
      there.

    Args:
        path: of the file, for messages.

    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._counting = Lock()
        self._turn = Lock()
        self._asked = self._covered = 0
        self._error = 0

    def check(self) -> None:
        """Raise OSError if a call has failed before."""
        if self._error:
            reason = f"{self._path} has lost data in an earlier flush; open it anew, and look"
            raise OSError(self._error, reason)

    def __call__(self, sync: Callable[[], object]) -> None:
        """Call ``sync``, or share a call that began after this one.

        Raises:
            OSError: it has failed, now or before.

        """
        with self._counting:
            self._asked += 1
            number = self._asked
        with self._turn:
            self.check()
            if self._covered >= number:
                return
            with self._counting:
                covered = self._asked
            try:
                sync()
            except OSError as exc:
                self._error = exc.errno or errno.EIO
                raise
            self._covered = covered


def sync_path(path: str) -> None:
    """Open a file or directory, and sync it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory_of(path: str | os.PathLike[str]) -> None:
    """Make the name of a new file durable, unless its directory cannot be read."""
    with suppress(PermissionError):  # of open(), which sync needs
        sync_path(os.path.dirname(os.path.abspath(path)))


def create_file(path: str | os.PathLike[str], size: int) -> None:
    """Make a file of ``size`` bytes, all of them a hole, for its owner only; its name is durable.

    What a disk holds is no other user's business, whatever the umask.

    Raises:
        FileExistsError: there is one; it is left as it is.
        OSError: it cannot be made; then none is left.

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
