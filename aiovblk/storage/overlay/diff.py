"""What was written to an overlay, on a device that keeps it.

Durability. Two rules, and all else follows:

1. *Data, then state.* A block is marked when its contents are in the diff, never before.
2. *A flush takes the changed pages of the map, flushes the device, writes these pages, and flushes
   again.* What a page says was therefore true, and durable, when the page began to be written.

So after a crash, wherever it comes:

* A write that was flushed is there: the second flush had made the page that tells of it durable.
* A block that the map has as DATA holds what was written, never what lay there before: the pages
  are taken before the first flush begins. A block that is written for the first time *during* the
  flush is not DATA in them.
* A block that is BASE or ZERO in the map is not read from the diff at all, whatever lies there.
* Space is given back before the map says so, but by writing zeroes (which make a hole), not by a
  trim. Until the map is written, the block is DATA still, and holds what it held, or zeroes: what
  was there before the request, or what it asked for.

A full disk must not keep the map from being written, long after the writes were accepted that it
tells of. So the diff is made to have room for a page of the map, by writing zeroes to it that are
not to become a hole, before any block is marked in it for the first time; if there is no room the
request fails (ENOSPC), and nothing has changed.

Writing the pages without the first flush would let the map be durable before the data; without the
second one the flush would return before the map is.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from functools import partial
from typing import Self

from ...aio.coalesce import CoalescedCall
from ...aio.gather import run_bounded
from ...contract import check_extents
from ...device import BlockDevice, overrides
from .blockmap import BASE, DATA, ZERO, BlockMap
from .format import PAGE, DiffHeader

_PIECE = 1 << 20  # bytes of the map that are read at once

Run = tuple[int, int, int]
"""State, begin and end of blocks that are alike."""


class Diff:
    """The blocks that differ from the base, and the map that tells which.

    Offsets are bytes of the overlay.

    Args:
        device: where it is.
        header: what its first page says.

    Attributes:
        flush: makes durable what was written until it is called. One flush covers all who ask
            before it begins.

    """

    def __init__(self, device: BlockDevice, header: DiffHeader) -> None:
        self.device = device
        self.header = header
        self._data = header.data
        self._blockmap = BlockMap(header.block_size, header.map_size, header.page)
        self._reserving: dict[int, asyncio.Task[None]] = {}
        self.flush = CoalescedCall(self._flush)

    @classmethod
    async def create(cls, device: BlockDevice, header: DiffHeader) -> Self:
        """Make a diff without any blocks.

        Raises:
            FileExistsError: the first page of the device has other bytes than zeroes.
            ValueError: the device is too small, or read-only.

        """
        _check_size(device, header)
        if device.read_only:
            raise ValueError("the diff is read-only, and cannot be made")
        if any(await device.read(0, header.page)):
            raise FileExistsError(
                errno.EEXIST,
                "the diff is in use: Overlay.open() opens it if it is one, and zeroes over its"
                f" first {header.page} bytes make another one of it",
            )
        # The header comes last. Without it this is no diff yet, and may be made again.
        await device.write_zeroes(header.page, header.map_size, may_trim=True)
        await device.flush()
        diff = cls(device, header)
        await diff.rewrite(header)
        return diff

    @classmethod
    async def open(cls, device: BlockDevice) -> Self:
        """Read the header and the map.

        Raises:
            ValueError: it is no diff, has another format, is cut off, or has larger blocks.
            OSError: it is damaged, or cannot be read.

        """
        page = max(PAGE, device.block_size)
        if device.size < page:
            raise ValueError(f"{device.size} bytes are not the diff of an overlay")
        header = DiffHeader.parse(await device.read(0, page))
        _check_size(device, header)
        diff = cls(device, header)
        await diff._load()
        return diff

    @property
    def is_clean(self) -> bool:
        """Whether no flush is under way, and the map is in the diff as it is."""
        return not self._blockmap.is_changed and self.flush.is_idle

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written or trimmed."""
        return self._blockmap.run(0, self.header.size) == (BASE, self.header.size)

    def run(self, offset: int, end: int) -> tuple[int, int]:
        """Where the block at ``offset`` is, and where, up to ``end``, that changes."""
        state, stop = self._blockmap.run(offset, end)
        shown = self.header.base_size
        if state == BASE and stop > shown:
            return (ZERO, stop) if offset >= shown else (BASE, shown)
        return state, stop

    def runs(self, offset: int, end: int) -> Iterator[Run]:
        """All runs in a range, each as it is when its turn comes."""
        while offset < end:
            state, stop = self.run(offset, end)
            yield state, offset, stop
            offset = stop

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read blocks that are DATA."""
        return await self.device.read(self._data + offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Make these blocks DATA."""
        await self._reserve(offset, offset + len(data))
        await self.device.write(self._data + offset, data)
        self._blockmap.mark(offset, offset + len(data), DATA)

    async def allocate(self, offset: int, length: int) -> None:
        """Make these blocks DATA, all zeroes."""
        await self._reserve(offset, offset + length)
        await self.device.write_zeroes(self._data + offset, length, may_trim=False)
        self._blockmap.mark(offset, offset + length, DATA)

    async def trim(self, offset: int, length: int) -> None:
        """Do the same as :meth:`zero`, but where the map has no room to tell of it."""
        await run_bounded(
            partial(self._trim, *run) for run in list(self.runs(offset, offset + length))
        )

    async def _trim(self, state: int, begin: int, end: int) -> None:
        try:
            await self._zero(state, begin, end)
        except OSError as exc:
            # Where it has none nothing is DATA; and a full disk must not refuse to be trimmed.
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    async def zero(self, offset: int, length: int) -> None:
        """Make these blocks ZERO, and give their space back."""
        await run_bounded(
            partial(self._zero, *run) for run in list(self.runs(offset, offset + length))
        )

    async def _zero(self, state: int, begin: int, end: int) -> None:
        if state != ZERO:
            await self._reserve(begin, end)
        if state == DATA and overrides(self.device, BlockDevice.write_zeroes):
            await self.device.write_zeroes(self._data + begin, end - begin, may_trim=True)
        if state != ZERO:  # beyond the base it is so without being marked
            self._blockmap.mark(begin, end, ZERO)

    async def hide(self, offset: int, end: int) -> None:
        """Mark what is zeroes here because the base does not reach so far."""
        for state, begin, stop in self.runs(offset, end):
            if state == ZERO:
                await self._reserve(begin, stop)
                self._blockmap.mark(begin, stop, ZERO)

    def clear(self) -> None:
        """Make all blocks BASE. Their space is kept until :meth:`release`."""
        for state, begin, end in self.runs(0, self.header.size):
            if state != BASE:
                self._blockmap.mark(begin, end, BASE)

    async def release(self) -> None:
        """Give back the space of blocks that are BASE. No reader may hold a view of them."""
        size = self.header.size
        await run_bounded(
            partial(self.device.trim, self._data + begin, end - begin)
            for state, begin, end in self.runs(0, size)
            if state == BASE
        )

    async def rewrite(self, header: DiffHeader) -> None:
        """Make another header durable, one of the same geometry."""
        await self.device.write(0, memoryview(header.serialize()))
        await self.device.flush()
        self.header = header

    async def _flush(self) -> None:
        pages = self._blockmap.take_changed()
        begin = self.header.page
        try:
            await self.device.flush()
            if pages:
                write = self.device.write
                await run_bounded(
                    partial(write, begin + at, memoryview(page)) for at, page in pages
                )
                await self.device.flush()
        except BaseException:
            self._blockmap.put_back(pages)
            raise

    async def _reserve(self, offset: int, end: int) -> None:
        """See to it that the map can be written when these blocks are marked."""
        for at in self._blockmap.unreserved(offset, end):
            task = self._reserving.get(at)
            if task is None:
                task = self._reserving[at] = asyncio.create_task(self._reserve_page(at))
                task.add_done_callback(partial(self._reserved, at))
            # One for all: zeroes that come late would overwrite what a flush has written.
            await asyncio.shield(task)

    async def _reserve_page(self, at: int) -> None:
        await asyncio.sleep(0)  # a loop may start tasks at once, before this one is known
        page = self.header.page
        await self.device.write_zeroes(page + at, page, may_trim=False)
        self._blockmap.reserve(at)

    def _reserved(self, at: int, task: asyncio.Task[None]) -> None:
        del self._reserving[at]
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may be left

    async def _load(self) -> None:
        """Read the map; holes of a sparse diff, which are BASE, are left out."""
        page = self.header.page
        position, end = page, page + self.header.map_size
        while position < end:
            found = check_extents(await self.device.extents(position, end - position))
            for length, _, zero in found:
                stop = min(position + length, end)
                if not zero:
                    # Extents need not keep to blocks.
                    await self._load_part(position // page * page, -(-stop // page) * page)
                position = stop

    async def _load_part(self, begin: int, end: int) -> None:
        for offset in range(begin, end, _PIECE):
            part = await self.device.read(offset, min(_PIECE, end - offset))
            self._blockmap.load([(offset - self.header.page, bytes(part))])


def _check_size(device: BlockDevice, header: DiffHeader) -> None:
    if device.size < header.end:
        raise ValueError(
            f"the diff has {device.size} bytes, but {header.end} are needed for an overlay of"
            f" {header.size} (Overlay.diff_size() tells)"
        )
    if device.block_size > header.block_size:
        raise ValueError(
            f"the diff has blocks of {device.block_size} bytes, the overlay of"
            f" {header.block_size}: open the diff with block_size={header.block_size}, and the base"
            f" (?block_size={header.block_size} after a SPEC)"
        )
