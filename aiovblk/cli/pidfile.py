"""Write the number of this process to a file for as long as it serves (``--pidfile``)."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .errors import SpecError

logger = logging.getLogger("aiovblk")


@contextmanager
def pidfile(path: str) -> Iterator[None]:
    """Write the file, complete from the moment it appears, and remove it when the block is left.

    An older file of that name is replaced. One that another process has put in its place meanwhile
    stays; so does one in a directory that this process may not write to any more.

    Raises:
        SpecError: what is there is no regular file, and would be lost.
        OSError: it cannot be written.

    """
    content = b"%d\n" % os.getpid()
    _check_replaceable(path)
    written = _write(path, content)
    try:
        yield
    finally:
        try:
            if _is_still(path, written, content):
                os.unlink(path)
        except OSError as exc:
            logger.info("%s is not removed: %s", path, exc.strerror)


def _check_replaceable(path: str) -> None:
    """Refuse a device, a pipe, a directory, or a link to one: /dev/null, say."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise SpecError(f"--pidfile would replace {path}, which is no regular file: name another")


def _write(path: str, content: bytes) -> os.stat_result:
    """Write the file; return its status, which tells it from others."""
    # In a file of its own first: nothing that is there already is written to or followed.
    folder, name = os.path.split(path)
    descriptor, new = tempfile.mkstemp(dir=folder or ".", prefix=f".{name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, 0o644)
            status = os.fstat(descriptor)
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(new)
        raise
    return status


def _is_still(path: str, written: os.stat_result, content: bytes) -> bool:
    """Whether it is the same file, with the same content; never waits for a pipe."""
    if not os.path.samestat(os.lstat(path), written):
        return False
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags), "rb") as file:
        return file.read(len(content) + 1) == content
