"""Open or create the file that holds a diff."""

from __future__ import annotations

import os

import anyio

from ..file import FileDevice
from ..fsync import create_if_missing


async def open_file(
    path: str | os.PathLike[str], size: int, block_size: int
) -> tuple[FileDevice, bool]:
    """Open a file as a device; create a sparse one if it does not exist, or is empty.

    Args:
        path: of the file.
        size: bytes of a file that is created.
        block_size: bytes.

    Returns:
        The device, and whether it is new: nothing was ever written to it.

    """
    is_new = await anyio.to_thread.run_sync(create_if_missing, path, size)
    device = FileDevice(path, block_size=block_size)
    try:
        # A file that a crash has left without a header, all of it a hole, counts as new.
        return device, is_new or await _is_hole(device)
    except BaseException:
        await device.unmount()
        raise


async def _is_hole(device: FileDevice) -> bool:
    position = 0
    while position < device.size:
        for length, _, zero in await device.extents(position, device.size - position):
            if not zero:
                return False
            position += length
    return True
