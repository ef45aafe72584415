"""Write the number of this process to a file for as long as it serves (``--pidfile``)."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("aiovblk")


@contextmanager
def pidfile(path: str) -> Iterator[None]:
    """Write the file, complete from the moment it appears, and remove it when the block is left.

    An older file of that name is replaced. One that another process has put in its place meanwhile
    stays; so does one in a directory that this process may not write to any more.

    Raises:
        OSError: it cannot be written.

    """
    file = Path(path)
    content = f"{os.getpid()}\n"
    # In a file of its own first: nothing that is there already is written to or followed.
    with tempfile.NamedTemporaryFile(
        "w", dir=file.parent, prefix=f".{file.name}.", delete=False
    ) as new:
        new.write(content)
    try:
        os.chmod(new.name, 0o644)
        os.replace(new.name, file)
    except OSError:
        os.unlink(new.name)
        raise
    try:
        yield
    finally:
        try:
            if file.read_text() == content:
                file.unlink()
        except OSError as exc:
            logger.info("%s is not removed: %s", path, exc.strerror)
