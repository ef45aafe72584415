"""Backups in a raw file, or in any device, say the export of an NBD server: one state each.

How a target that changes block by block is a whole state at any moment: see :mod:`.state_folder`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import ClassVar

from ...contract import check_inner
from ...device import BlockDevice
from ..blocksize import BlockSize
from ..file import FileDevice
from ..fsync import sync_directory_of
from ..layer import Layer
from ..overlay import Overlay
from .applying import apply_redo, commit
from .digests import (
    Digests,
    VerifiedImage,
    check_pieces,
    data_in,
    pieces_of,
    verify_pieces,
)
from .errors import BackupError
from .moving import Advance
from .sources import Geometry
from .state_folder import RawState, StateFolder
from .states import Backup, Progress, free_name

BLOCK_SIZE = 4096
"""Bytes of a block of the redo log at most."""


class _Borrowed(Layer):
    """A device that is the caller's, and is not unmounted with the layers on it."""

    async def unmount(self) -> None:
        pass


class RawTarget(ABC):
    """A target that holds the newest backup only.

    Args:
        folder: on this machine, where the target's state is kept, and changes go first.

    """

    keeps_history: ClassVar[bool] = False

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = StateFolder(folder)

    @abstractmethod
    def image(self, *, read_only: bool) -> BlockDevice:
        """Open the target itself, which holds a backup."""

    @abstractmethod
    def resumes(self, geometry: Geometry) -> bool:
        """Whether :meth:`new_image` opens what an unfinished first backup has written."""

    @abstractmethod
    def new_image(self, geometry: Geometry) -> BlockDevice:
        """Open what the first backup is written to.

        Raises:
            BackupError: it does not fit, or there is something that is no backup.

        """

    @abstractmethod
    def publish(self) -> None:
        """Make what :meth:`new_image` has opened the target, durably; no-op if it is."""

    @asynccontextmanager
    async def open(self, geometry: Geometry) -> AsyncGenerator[OpenRawTarget, None]:
        """See :class:`.Target`."""
        folder = self._folder
        await asyncio.to_thread(folder.make)
        with folder.locked():
            state = await self._recover()
            if state is not None and state.backup.size != geometry.size:
                raise BackupError(
                    f"the backup in {folder.path} has {state.backup.size} bytes, and the source"
                    f" {geometry.size}: begin a new one elsewhere, or use a folder or bucket, where"
                    " backups may differ in size"
                )
            progress = _current(await asyncio.to_thread(folder.progress), state)
            if progress is None or (state is None and not self.resumes(geometry)):
                progress = None
                await asyncio.to_thread(folder.clear)
            device = await self._open_device(geometry, state)
            try:
                identity = await asyncio.to_thread(folder.identity)
                latest = None if state is None else state.backup
                yield OpenRawTarget(
                    self, folder, device, state, identity, progress or Progress.after(latest)
                )
            finally:
                await device.unmount()

    async def _open_device(self, geometry: Geometry, state: RawState | None) -> BlockDevice:
        """Open what a run writes to: the redo log over the target, or a first image."""
        if state is None:
            return await asyncio.to_thread(self.new_image, geometry)
        size = state.backup.size
        image = await self._open_image(size, read_only=False)
        try:
            # Whether it is that target at all: another device would get the changes only.
            await check_pieces(VerifiedImage(image, state.digests), state.digests.sample())
            return await Overlay.file(image, self._folder.redo, size=size, identity=state.identity)
        except BaseException:
            await image.unmount()
            raise

    async def _open_image(self, size: int, *, read_only: bool) -> BlockDevice:
        """Open the target itself; EIO if it has become smaller than its backup, ``size`` bytes."""
        image = await asyncio.to_thread(lambda: self.image(read_only=read_only))
        if image.size < size:
            await image.unmount()
            found = f"the target has {image.size} bytes, fewer than the {size} of its backup"
            raise OSError(errno.EIO, f"{found}: begin a new one elsewhere")
        return image

    async def _recover(self) -> RawState | None:
        """Apply a backup that counts already, and return what the target holds then."""
        following = await asyncio.to_thread(self._folder.next)
        if following is not None:
            if await asyncio.to_thread(self._folder.redo.exists):
                size = following.backup.size
                image = await self._open_image(size, read_only=False)
                await apply_redo(image, self._folder.redo, size)
            await asyncio.to_thread(self.publish)
            await asyncio.to_thread(self._folder.finish)
        return await asyncio.to_thread(self._folder.state)

    @asynccontextmanager
    async def _existing(self) -> AsyncIterator[RawState]:
        folder = self._folder
        missing = FileNotFoundError(errno.ENOENT, f"{folder.path}: there is no backup")
        if not await asyncio.to_thread(folder.path.is_dir):
            raise missing
        with folder.locked():
            state = await self._recover()
            if state is None:
                raise missing
            yield state

    async def backups(self) -> Sequence[Backup]:
        """See :class:`.Target`."""
        async with self._existing() as state:
            return [state.backup]

    @asynccontextmanager
    async def read(self, name: str) -> AsyncGenerator[VerifiedImage, None]:
        """See :class:`.Target`."""
        async with self._existing() as state:
            if name != state.backup.name:
                reason = f"{self._folder.path}: there is no backup {name!r}; there is only"
                raise FileNotFoundError(errno.ENOENT, f"{reason} {state.backup.name}")
            image = await self._open_image(state.backup.size, read_only=True)
            try:
                yield VerifiedImage(image, state.digests)
            finally:
                await image.unmount()

    async def verify(self, advance: Advance) -> list[str]:
        """See :class:`.Target`."""
        async with self._existing() as state:
            digests = state.digests
            image = await self._open_image(digests.size, read_only=True)
            try:
                # What is a hole in the image, and has a digest, is damage, and the other way round.
                there = set(pieces_of(await data_in(image, digests.size)))
                there |= {each for each in range(digests.count) if not digests.is_zero(each)}
                verified = VerifiedImage(image, digests)
                return await verify_pieces(verified, iter(sorted(there)), advance)
            finally:
                await image.unmount()

    async def collect_garbage(self) -> int:
        """See :class:`.Target`."""
        return 0


class FileTarget(RawTarget):
    """A raw file that holds the newest backup.

    It is made by the first backup, and takes its name when it is whole. The changes of a later one
    are written beside it, and then into it; if that is interrupted, the file alone is a mixture
    until the next use of this target has finished it.

    Args:
        path: of the file.
        folder: where its state is kept, and changes go first, in the same file system; by default
            ``PATH.backup``.

    """

    def __init__(
        self, path: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None
    ) -> None:
        self.path = os.fspath(path)
        super().__init__(f"{self.path}.backup" if folder is None else folder)

    def image(self, *, read_only: bool) -> BlockDevice:
        """See :class:`RawTarget`."""
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError:
            reason = (
                f"{self.path} is missing, which {self._folder.path} describes: put it back, or"
                " remove that folder to begin anew"
            )
            raise FileNotFoundError(errno.ENOENT, reason) from None
        return FileDevice(self.path, block_size=_block_of(size), read_only=read_only)

    def new_image(self, geometry: Geometry) -> BlockDevice:
        """See :class:`RawTarget`."""
        if os.path.lexists(self.path):
            raise BackupError(
                f"{self.path} exists and is no backup; it was left as it is: name another file"
            )
        if _file_system(self._folder.path) != _file_system(os.path.dirname(self.path) or "."):
            raise BackupError(
                f"{self._folder.path} is in another file system than {self.path}, so the first"
                " backup could not get its name there: name another folder"
            )
        path, block_size = self._folder.image, _block_of(geometry.size)
        if self.resumes(geometry):
            return FileDevice(path, block_size=block_size)
        return FileDevice.create(path, geometry.size, block_size=block_size)

    def resumes(self, geometry: Geometry) -> bool:
        """See :class:`RawTarget`."""
        path = self._folder.image
        return path.exists() and path.stat().st_size == geometry.size

    def publish(self) -> None:
        """See :class:`RawTarget`."""
        if self._folder.image.exists():
            os.replace(self._folder.image, self.path)
            sync_directory_of(self.path)


class DeviceTarget(RawTarget):
    """A device, say the export of a server, that holds the newest backup at its beginning.

    The first backup is written to it directly: until it is whole there is none. The changes of a
    later one are kept in the folder until they are whole, and then written to the device; if that
    is interrupted, the device alone is a mixture until the next use of this target has finished it.

    Args:
        device: at least as large as the source. The caller unmounts it. Only backups may write to
            it.
        folder: on this machine, where its state is kept, and changes go first. Without it the
            device is no backup.

    Raises:
        TypeError: not a BlockDevice.

    """

    def __init__(self, device: BlockDevice, *, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._device = check_inner(device, "device")

    def image(self, *, read_only: bool) -> BlockDevice:
        """See :class:`RawTarget`."""
        borrowed = _Borrowed(self._device)
        block_size = _block_of(self._device.size)
        # A redo log has a byte for each block, so they should not be of one byte.
        if borrowed.block_size < block_size:
            return BlockSize(borrowed, block_size)
        return borrowed

    def new_image(self, geometry: Geometry) -> BlockDevice:
        """See :class:`RawTarget`."""
        if self._device.read_only:
            raise BackupError("the target is read-only")
        image = self.image(read_only=False)
        if image.size < geometry.size or geometry.size % image.block_size:
            raise BackupError(
                f"the source's {geometry.size} bytes do not fit into the {image.size} of the"
                f" target, in blocks of {image.block_size}"
            )
        return image

    def resumes(self, geometry: Geometry) -> bool:
        """See :class:`RawTarget`."""
        return True

    def publish(self) -> None:
        """See :class:`RawTarget`."""


class OpenRawTarget:
    """See :class:`.OpenTarget`.

    Args:
        target: what is open.
        folder: its folder.
        device: what a run writes to.
        state: what the target holds; None if nothing.
        identity: of the target.
        progress: what ``device`` holds.

    """

    def __init__(
        self,
        target: RawTarget,
        folder: StateFolder,
        device: BlockDevice,
        state: RawState | None,
        identity: str,
        progress: Progress,
    ) -> None:
        self._target = target
        self._folder = folder
        self._state = state
        self.device = device
        self.identity = identity
        self.progress = progress

    async def note(self, progress: Progress) -> None:
        """See :class:`.OpenTarget`."""
        await asyncio.to_thread(self._folder.put_progress, progress)
        self.progress = progress

    async def commit(self, backup: Backup) -> Backup:
        """See :class:`.OpenTarget`."""
        taken = () if self._state is None else (self._state.backup.name,)
        backup = replace(backup, name=free_name(backup.time, taken))
        digests = await self._digests(backup.size)
        await asyncio.to_thread(self._folder.put_next, RawState(backup, digests))
        if isinstance(self.device, Overlay):
            await commit(self.device, self._folder.redo)
        await asyncio.to_thread(self._target.publish)
        await asyncio.to_thread(self._folder.finish)
        self._state = RawState(backup, digests)
        return backup

    async def _digests(self, size: int) -> Digests:
        """Take the digests of what the device holds now, of the pieces that have changed.

        Raises:
            OSError: (EIO) a piece that has changed was damaged before.

        """
        if self._state is None or not isinstance(self.device, Overlay):
            digests = Digests(size)
            await digests.take(self.device, iter(pieces_of(await data_in(self.device, size))))
            return digests
        changed = pieces_of(self.device.changed())
        await check_pieces(VerifiedImage(self.device.inner, self._state.digests), changed)
        digests = self._state.digests.copy()
        await digests.take(self.device, iter(changed))
        return digests

    async def backups(self) -> Sequence[Backup]:
        """See :class:`.OpenTarget`."""
        return [] if self._state is None else [self._state.backup]

    async def drop(self, names: Collection[str]) -> Sequence[str]:
        """No-op: there is only the newest backup."""
        return ()


def _current(progress: Progress | None, state: RawState | None) -> Progress | None:
    """Return the progress of an unfinished run, unless it is of one that was finished since."""
    latest = None if state is None else state.backup.name
    return progress if progress is not None and progress.base == latest else None


def _file_system(path: str | os.PathLike[str]) -> int:
    return os.stat(path).st_dev


def _block_of(size: int) -> int:
    return min(size & -size, BLOCK_SIZE) or BLOCK_SIZE
