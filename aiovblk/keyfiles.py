"""Check the permissions of files that hold a key."""

from __future__ import annotations

import logging
import os
import shlex
import stat

logger = logging.getLogger("aiovblk")


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
