"""A diff that is a file."""

from __future__ import annotations

import os

import anyio

from ..file import FileDevice
from ..fsync import create_file, sync_directory_of


async def open_file(
    path: str | os.PathLike[str], size: int, block_size: int
) -> tuple[FileDevice, bool]:
    """Open a file; make it, sparse, if there is none.

    Args:
        path: of the file.
        size: bytes of one that is made.
        block_size: bytes.

    Returns:
        It, and whether it is new: nothing was ever written to it.

    """
    is_new = await anyio.to_thread.run_sync(_make, path, size)
    device = FileDevice(path, block_size=block_size)
    try:
        # One that a crash has left behind, before its header was written, is as good as new.
        return device, is_new or await _is_hole(device)
    except BaseException:
        await device.unmount()
        raise


def _make(path: str | os.PathLike[str], size: int) -> bool:
    """Give the file a size if it has none, and see to it that what is flushed to it is found.

    Returns:
        Whether it had none.

    """
    if os.path.exists(path) and os.path.getsize(path):
        return False
    try:
        create_file(path, size)
    except FileExistsError:  # an empty one, which somebody has made for this
        with open(path, "ab") as file:
            file.truncate(size)
            os.fsync(file.fileno())
        sync_directory_of(path)
    return True


async def _is_hole(device: FileDevice) -> bool:
    position = 0
    while position < device.size:
        for length, _, zero in await device.extents(position, device.size - position):
            if not zero:
                return False
            position += length
    return True
