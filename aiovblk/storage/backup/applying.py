"""Apply the redo log of a raw target: a backup that counts already is written into the target."""

from __future__ import annotations

from pathlib import Path

from ...device import BlockDevice
from ..overlay import Overlay


async def apply_redo(image: BlockDevice, redo: Path, size: int) -> None:
    """Write a redo log into a target, which is unmounted then.

    Args:
        image: the target.
        redo: the file.
        size: bytes of the backup.

    Raises:
        OSError: that failed; it can be repeated.

    """
    try:
        overlay = await Overlay.file(image, redo, size=size)
    except BaseException:
        await image.unmount()
        raise
    try:
        await commit(overlay, redo)
    finally:
        await overlay.unmount()


async def commit(overlay: Overlay, redo: Path) -> None:
    """Write a redo log, over the target that it is for, into that.

    Raises:
        OSError: that failed; it can be repeated.

    """
    try:
        await overlay.commit()
    except OSError as exc:
        raise OSError(
            exc.errno,
            f"the newest backup is whole in {redo.parent}, but could not be written into the"
            f" target ({exc.strerror or exc}): each use of the target tries again",
        ) from exc
