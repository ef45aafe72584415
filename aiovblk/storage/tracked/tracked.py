"""The layer that records which blocks were written since named points in time."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from ...aio.gate import PausableGate
from ...aio.gather import gather_all
from ...aio.tasks import wait_shielded
from ...arguments import check_block_size
from ...bitmaps import DirtyExtent
from ...device import BlockDevice
from ...errors import StorageError
from ..layer import Layer
from . import points
from .header import Header
from .opening import check_bits, open_recorder
from .points import Point
from .reading import BitmapReader

T = TypeVar("T")

logger = logging.getLogger("aiovblk")

MAX_GRANULARITY = 64 << 20
"""Bytes of the largest unit of a bitmap."""


class Tracked(Layer):
    """Records which blocks were written since named points in time, in a file.

    ::

        tracked = Tracked(FileDevice("disk.img"), "disk.bitmaps")
        await tracked.add("monday")
        ...
        for length, dirty in await tracked.dirty_extents("monday", 0, tracked.size):
            ...

    It has dirty bitmaps (:class:`aiovblk.bitmaps.SupportsDirtyBitmaps`), one for each point. A
    block is dirty since a point if a write, a trim or zeroes for it have begun since, or were in
    flight when the point was added; also if they have failed. No changed block is
    ever missing: not after ``kill -9`` and not after a power failure. After the latter more may be
    dirty than has changed, see the table in the documentation.

    The device must not be written without the layer, and the file not be restored from a copy.

    Memory: one bit for each ``granularity`` bytes of the device, 32 MiB for 1 TiB in blocks of
    4096; at most 128 MiB. The file takes that for each of at most 16 intervals between points, and
    is sparse.

    **Points** (:meth:`add`, :meth:`merge`, :meth:`drop`, :meth:`points`) may be changed while
    requests are served.

    Concurrency: that of ``inner``. The first write to a block since the last point waits for a
    small write to the file's page cache, made by the event loop's thread while it holds the
    interpreter's lock: the file belongs on a local file system.

    Durability: that of ``inner``. A flush is one flush of ``inner``. The file is flushed in
    addition: when it is opened and closed, and the first time that something is written; when a
    point is added, merged or dropped, or the device is resized; and at most 8 times for 32 flushes
    when writes stay in one part of the device for a while. If flushing it fails, every change
    fails from then on, since it could not be recorded.

    Cancellation: of a request, as on ``inner``; one that was cancelled may still be made, so its
    blocks count as dirty for all points that are added later. A change of the points that has
    begun is finished.

    Args:
        inner: the device below. If it is read-only, so is the file, which other readers may share.
        path: of the file; made if it is missing, or empty, without points. It must not be on the
            device itself.
        granularity: bytes for each bit, a power of two, at least the block size; by default the
            block size, or what the file has.

    Raises:
        StorageError: the file is damaged, of another granularity, or no such file.
        BlockingIOError: another process has opened it.
        OSError: it cannot be opened, read or written.
        TypeError, ValueError: the granularity is impossible, or too small for this device.

    """

    def __init__(
        self, inner: BlockDevice, path: str | os.PathLike[str], *, granularity: int | None = None
    ) -> None:
        super().__init__(inner)
        check_block_size(
            granularity, name="granularity", minimum=self.block_size, maximum=MAX_GRANULARITY
        )
        self.multi_conn = False  # the bitmap is in the memory of this process only
        self.path = os.fspath(path)
        self._is_read_only = bool(inner.read_only)
        self._recorder = open_recorder(
            self.path,
            self.size,
            block_size=self.block_size,
            granularity=granularity,
            read_only=self._is_read_only,
        )
        self._reader = BitmapReader(self._recorder)
        self._shift = self.granularity.bit_length() - 1
        self._gate = PausableGate()  # answers pass; what changes the points pauses it

    @property
    def granularity(self) -> int:
        """Bytes for each bit of a bitmap."""
        return self._recorder.header.granularity

    @property
    def blocks(self) -> int:
        """The number of blocks of ``inner``; setting it resizes ``inner``, and the bitmaps."""
        blocks: int = self.inner.blocks
        return blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        before, size = self.size, value * self.block_size
        check_bits(size, self.granularity)
        if self._is_read_only or size == before:
            self.inner.blocks = value
            return
        self._recorder.check()
        self._recorder.resize(size)
        try:
            self.inner.blocks = value
        except BaseException:
            self._recorder.resize(before)
            raise

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to ``inner``, once that is recorded."""
        first, last = offset >> self._shift, (offset + len(data) - 1) >> self._shift
        recorder = self._recorder
        with recorder.change(first, last):
            if not recorder.mark_now(first, last):
                await recorder.mark(first, last)
            await self.inner.write(offset, data)

    async def trim(self, offset: int, length: int) -> None:
        """Trim ``inner``, once that is recorded."""
        await self._change(offset, length, self.inner.trim)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes to ``inner``, once that is recorded; as writes if it can only write."""
        if "write_zeroes" in self._unsupported:
            await super().write_zeroes(offset, length, may_trim=may_trim)
            return
        await self._change(offset, length, partial(self.inner.write_zeroes, may_trim=may_trim))

    async def _change(
        self, offset: int, length: int, call: Callable[[int, int], Awaitable[None]]
    ) -> None:
        first, last = offset >> self._shift, (offset + length - 1) >> self._shift
        with self._recorder.change(first, last):
            await self._recorder.mark(first, last)
            await call(offset, length)

    async def flush(self) -> None:
        """Flush ``inner``; now and then the bitmaps with it, so that a power failure costs less."""
        if self._recorder.should_close_regions():
            await gather_all([self.inner.flush(), self._close_regions()])
        else:
            await self.inner.flush()

    async def _close_regions(self) -> None:
        try:
            await self._recorder.close_regions()
        except OSError as exc:  # of the bitmaps: what the program flushes is durable all the same
            logger.error("%s: %s", self.path, exc)

    async def dirty_bitmaps(self) -> Sequence[str]:
        """Return the names of the points, sorted."""
        return sorted(self._recorder.header.points)

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        """Return what is dirty, see :class:`aiovblk.bitmaps.SupportsDirtyBitmaps`."""
        async with self._gate:
            return await self._reader.extents(name, offset, length)

    async def points(self) -> Sequence[Point]:
        """Return the points, the oldest first, and how much is dirty since each.

        Raises:
            OSError: the file cannot be read, or is damaged.

        """
        async with self._gate:
            return await self._reader.points()

    async def add(self, name: str) -> None:
        """Add a point: now.

        What was written before this is called, and has returned, is not dirty since then; it is
        flushed, so that a power failure does not take it back.

        Args:
            name: up to 200 bytes of printable characters, not in use. A name that is never used
                again cannot be taken for an older point.

        Raises:
            StorageError: there are too many points, or the device is read-only.
            TypeError, ValueError: it is no such name.
            OSError: the file cannot be written.

        """
        points.check_new_name(self._recorder.header, name)
        await self._edit(lambda: self._add(name))

    async def merge(self, name: str, *sources: str) -> None:
        """Let a point count as dirty what any of others does: it moves to the earliest of them.

        The others remain.

        Raises:
            KeyError: there is no such point.
            StorageError: the device is read-only.
            OSError: the file cannot be written.

        """
        await self._edit(lambda: self._store(lambda header: points.merge(header, name, sources)))

    async def drop(self, name: str) -> None:
        """Drop a point.

        Raises:
            KeyError, StorageError, OSError: as for :meth:`merge`.

        """
        await self._edit(lambda: self._store(lambda header: points.drop(header, name)))

    async def unmount(self) -> None:
        """Unmount ``inner``, make the bitmaps durable, and close the file."""
        try:
            await super().unmount()
        finally:
            async with self._gate.pause():
                await self._recorder.close()

    async def _edit(self, edit: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Change the points, one change at a time; it is finished even if this is cancelled."""
        if self._is_read_only:
            raise StorageError(errno.EROFS, "the device is read-only, and so are its points")

        async def run() -> None:
            async with self._gate.pause():
                self._recorder.check()
                await edit()

        task = asyncio.create_task(run())
        await wait_shielded(task)

    async def _add(self, name: str) -> None:
        recorder, now = self._recorder, time.time()
        points.check_new_name(recorder.header, name)  # again: another one may have been added
        if recorder.live is not None and recorder.live.is_empty:  # nothing has begun since then
            await recorder.store(lambda header: points.add(header, name, now, None))
            return
        slot = points.free_slot(recorder.header)
        live = await recorder.begin_interval(slot)
        try:
            # A power failure may take back what was not flushed: that would be a change since then.
            await self._flush_inner()
            await recorder.store(lambda header: points.add(header, name, now, slot))
        except BaseException:
            if name not in recorder.header.points:
                recorder.end_intervals(recorder.live)
            raise
        recorder.end_intervals(live)
        await self._unite()

    async def _flush_inner(self) -> None:
        if "flush" not in self._unsupported:
            await self.inner.flush()

    async def _store(self, change: Callable[[Header], Header]) -> None:
        await self._recorder.store(change)
        if not self._recorder.header.intervals:
            self._recorder.end_intervals(None)
        await self._unite()

    async def _unite(self) -> None:
        """Unite the bitmaps of intervals between which there is no point any more."""
        recorder = self._recorder
        while (index := points.removable(recorder.header)) is not None:
            before, needless = recorder.header.intervals[index - 1 : index + 1]
            await self._reader.verify(before, needless)
            await recorder.store(partial(points.without_checksum, index=index - 1))
            length = recorder.header.bitmap_size
            await recorder.run(recorder.file.unite, before.slot, needless.slot, length)
            await recorder.sync()
            await recorder.store(partial(points.united, index=index))
