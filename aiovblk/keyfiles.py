"""Files that hold a key."""

from __future__ import annotations

import logging
import os
import shlex
import stat

logger = logging.getLogger("aiovblk")


def warn_if_shared(path: str | os.PathLike[str]) -> None:
    """Log a warning if other users than its owner can read or change a file that holds a key.

    Group access to a key of root's is no reason, for a process of another user: it is how that
    reads it (the rule of PostgreSQL, for keys of the group ssl-cert).

    Args:
        path: of the file.

    """
    status = os.stat(path)
    by_group = status.st_uid == 0 and os.geteuid() != 0
    if stat.S_ISREG(status.st_mode) and status.st_mode & (0o027 if by_group else 0o077):
        mode = "640" if by_group else "600"
        name = os.fspath(path)
        logger.warning("others can read the key in %s: chmod %s %s", name, mode, shlex.quote(name))
