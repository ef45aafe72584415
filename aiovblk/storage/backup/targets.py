"""What a run needs of a target, whatever it is kept in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ...device import BlockDevice
from .moving import Advance
from .sources import Geometry
from .states import Backup, Progress


class OpenTarget(Protocol):
    """A target that is open for a new backup; no other process writes to it meanwhile."""

    @property
    def identity(self) -> str:
        """Identify the target, by letters and digits."""
        ...

    @property
    def device(self) -> BlockDevice:
        """What is written to: it reads as the target's present state."""
        ...

    @property
    def progress(self) -> Progress:
        """What the present state is."""
        ...

    async def note(self, progress: Progress) -> None:
        """Make durable how far a run has come; what was written before was flushed."""
        ...

    async def commit(self, backup: Backup) -> Backup:
        """Make the present state, which was flushed, the newest backup.

        If this is interrupted, either the earlier backups are there or this one as well.

        Returns:
            The backup, with its name.

        """
        ...

    async def backups(self) -> Sequence[Backup]:
        """Return the backups, oldest first."""
        ...

    async def drop(self, names: Collection[str]) -> Sequence[str]:
        """Drop backups; return those that were: one that has clones stays."""
        ...


class Target(Protocol):
    """Where backups are kept: :class:`ObjectTarget`, :class:`FileTarget`, :class:`DeviceTarget`."""

    @property
    def keeps_history(self) -> bool:
        """Whether it holds several backups; otherwise a new one replaces the one before."""
        ...

    def open(self, geometry: Geometry) -> AbstractAsyncContextManager[OpenTarget]:
        """Open it for a new backup of a source of this shape; make it if it does not exist.

        Raises:
            BackupError: what is there is no backup, or does not fit.
            StorageBusyError, BlockingIOError: another process writes to it.

        """
        ...

    async def backups(self) -> Sequence[Backup]:
        """Return the backups that it holds, oldest first.

        Raises:
            FileNotFoundError: there is no such target.

        """
        ...

    def read(self, name: str) -> AbstractAsyncContextManager[BlockDevice]:
        """Open a backup; what is read is verified by checksums.

        Raises:
            FileNotFoundError: there is no backup of that name.

        """
        ...

    async def verify(self, advance: Advance) -> list[str]:
        """Read all that it holds; return a line for each problem.

        Args:
            advance: called with the number of bytes, or objects, done since the last call.

        """
        ...

    async def collect_garbage(self) -> int:
        """Delete what only dropped backups needed; return how many bytes that were."""
        ...
