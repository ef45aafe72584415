"""The folder beside a raw target that says what it holds, and takes the changes first.

A file, or the export of a server, has one state, and changes block by block. So a run writes into a
redo log in this folder, and the target is touched only when that is whole::

    state       the backup that the target holds, and its digests
    next        the same of a new one: from when it is there, that one counts
    redo        the blocks that the new one changes (a diff, see aiovblk.storage.Overlay)
    image       instead of ``redo``, the whole first backup of a file
    progress    how far an unfinished run has come

``next`` is made durable when ``redo`` is. Then the redo log is applied to the target, and ``next``
becomes ``state``. After an interruption the next command that opens the target applies it again,
which changes nothing that was applied already.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..fsync import sync_directory_of, sync_path
from .digests import Digests
from .errors import BackupError
from .states import Backup, Progress

_DIGEST = hashlib.sha256
_MAGIC = b"aiovblk-backup 1\n"


@dataclass(frozen=True, slots=True)
class RawState:
    """What a raw target holds."""

    backup: Backup
    digests: Digests
    identity: str = field(default_factory=lambda: secrets.token_hex(16))
    """Random: binds the redo log to this state."""

    def encode(self) -> bytes:
        """Encode it, with a checksum."""
        head = self.identity.encode() + b"\n" + self.backup.encode() + b"\n"
        data = _MAGIC + head + self.digests.encode()
        return data + _DIGEST(data).digest()

    @classmethod
    def decode(cls, data: bytes, where: str) -> RawState:
        """Decode what :meth:`encode` has made.

        Raises:
            OSError: (EIO) it is damaged.
            BackupError: it is something else.

        """
        if not data.startswith(_MAGIC):
            raise BackupError(f"{where} is no state of a backup, or of a later version of aiovblk")
        size = _DIGEST().digest_size
        if _DIGEST(data[:-size]).digest() != data[-size:]:
            raise OSError(errno.EIO, f"{where} is damaged: its checksum does not match")
        identity, backup, digests = data[len(_MAGIC) : -size].split(b"\n", 2)
        found = Backup.decode(backup)
        return cls(found, Digests.decode(digests, found.size), identity.decode())


class StateFolder:
    """The folder; see the module.

    Its methods block.

    Args:
        path: of the folder.

    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.redo = self.path / "redo"
        self.image = self.path / "image"
        self._state = self.path / "state"
        self._next = self.path / "next"
        self._progress = self.path / "progress"

    def make(self) -> None:
        """Make the folder, accessible to its owner only, if it does not exist."""
        with suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
            sync_directory_of(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from using it.

        Raises:
            BlockingIOError: another process uses it.
            FileNotFoundError: there is no such folder.

        """
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                reason = f"{self.path}: another process uses this backup"
                raise BlockingIOError(errno.EAGAIN, reason) from None
            yield
        finally:
            os.close(fd)

    def identity(self) -> str:
        """Return what identifies the target: made once, at random."""
        path = self.path / "identity"
        with suppress(FileNotFoundError):
            return path.read_text()
        self._put(path, secrets.token_hex(16).encode())
        return path.read_text()

    def state(self) -> RawState | None:
        """Read the state; None if there is none yet."""
        return self._read(self._state)

    def next(self) -> RawState | None:
        """Read the state that counts already, and may not be applied yet."""
        return self._read(self._next)

    def _read(self, path: Path) -> RawState | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        return RawState.decode(data, str(path))

    def progress(self) -> Progress | None:
        """Read how far an unfinished run has come; None if there is none.

        Raises:
            OSError: (EIO) it is damaged.

        """
        try:
            return Progress.decode(self._progress.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as exc:
            reason = f"{self._progress} is damaged ({exc}): delete it, and the next backup is"
            raise OSError(errno.EIO, f"{reason} made anew, from the one that there is") from None

    def put_progress(self, progress: Progress) -> None:
        """Make durable how far a run has come."""
        self._put(self._progress, progress.encode())

    def put_next(self, state: RawState) -> None:
        """Make a new state count: from when this returns, or before."""
        self._put(self._next, state.encode())

    def finish(self) -> None:
        """Make the next state the present one, once it is applied."""
        os.replace(self._next, self._state)
        sync_path(str(self.path))
        self.clear()

    def clear(self) -> None:
        """Delete what an unfinished run has left."""
        for path in (self._progress, self.redo, self.image):
            path.unlink(missing_ok=True)
        sync_path(str(self.path))

    def _put(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f"{path.name}.new")
        with open(temporary, "wb", opener=_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_path(str(self.path))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
