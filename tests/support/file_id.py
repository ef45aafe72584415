"""Which file a descriptor or a path leads to."""

import os
from pathlib import Path

FileId = tuple[int, int]


def file_id(file: int | Path) -> FileId:
    """Return what no other file has at the same time.

    An inode's number alone does not do: each file system counts its own, and those of a memfd, of
    /dev and of pipes are all small.
    """
    found = os.stat(file)
    return found.st_dev, found.st_ino
