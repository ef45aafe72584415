"""Read files that hold a key, and check their permissions."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import stat

logger = logging.getLogger("aiovblk")


def read_key_file(path: str | os.PathLike[str], maximum: int) -> bytes:
    """Read a key file, which may be a pipe; warn as :func:`warn_if_shared` does.

    A pipe that a process has open for writing is read to its end; one without a writer is
    empty, and is not waited for.

    Args:
        path: the key file.
        maximum: bytes that it may have.

    Raises:
        OSError: it cannot be read, or is larger, such as a device without an end.

    """
    with open(path, "rb", opener=_open_at_once) as file:
        os.set_blocking(file.fileno(), True)
        data = file.read(maximum + 1)
    if len(data) > maximum:
        raise OSError(errno.EFBIG, f"too large for a key file, more than {maximum} bytes", path)
    warn_if_shared(path)
    return data


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def warn_if_shared(path: str | os.PathLike[str]) -> None:
    """Log a warning if users other than its owner can read or change a key file.

    Exception: if the file belongs to root and this process does not run as root, read access of the
    group is allowed, since that is how the process reads it (PostgreSQL has the same rule, for keys
    of the group ssl-cert).

    Args:
        path: the key file.

    """
    status = os.stat(path)
    by_group = status.st_uid == 0 and os.geteuid() != 0
    if stat.S_ISREG(status.st_mode) and status.st_mode & (0o027 if by_group else 0o077):
        mode = "640" if by_group else "600"
        name = os.fspath(path)
        logger.warning("others can read the key in %s: chmod %s %s", name, mode, shlex.quote(name))
