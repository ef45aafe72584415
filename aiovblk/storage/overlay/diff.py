"""The diff of an overlay on its device: header, block map and blocks; its durability rules.

Durability follows from two invariants:

1. *Data before state.* A block is set to DATA when its contents are in the diff, never before.
2. *A flush takes the changed pages of the map, flushes the device, writes these pages, and flushes
   again.* So what a page says was true, and durable, before the write of the page began.

Therefore, after a crash at any time:

* A write that was flushed is there: the second flush had made its page of the map durable.
* A block that is DATA in the map holds what was written, never what the diff held there before:
  the pages are taken before the first flush begins. A block that is written for the first time
  *during* the flush is not DATA in them.
* A block that is BASE or ZERO in the map is never read from the diff, whatever is stored there.
* Space is given back before the map says so, but by writing zeroes (which make a hole), not by a
  trim. Until the map is written, the block is still DATA, and holds its old contents, or zeroes:
  the contents before the request, or those after it.

A full disk must not prevent the map from being written, long after the writes that it records
were accepted. So the diff allocates a page of the map, by writing zeroes that must not become a
hole, before any block in it is set for the first time. If there is no room the request fails
(ENOSPC), and nothing has changed.

Without the first flush the map could be durable before the data; without the second one the flush
would return before the map is durable.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from functools import partial
from typing import Self

from ...aio.coalesce import CoalescedCall
from ...aio.gather import run_bounded
from ...aio.tasks import wait_shielded
from ...contract import check_extents
from ...device import BlockDevice, can
from ..ranges import round_down, round_up, split_range
from .blockmap import BASE, DATA, ZERO, BlockMap
from .format import PAGE, DiffHeader

_MAX_READ = 1 << 20
"""Bytes of the map to read at once."""

Run = tuple[int, int, int]
"""State, begin and end of consecutive blocks with the same state."""


class Diff:
    """The blocks that differ from the base, and the map of them.

    Offsets are bytes of the overlay.

    Args:
        device: the device that holds the diff.
        header: the contents of its first page.

    Attributes:
        flush: makes durable what was written before it is called. Concurrent calls are coalesced:
            one flush covers all callers that wait when it begins (group commit).

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
        """Make an empty diff on a device, durably.

        Raises:
            FileExistsError: the first page of the device is not zeroes.
            ValueError: the device is too small, or read-only.

        """
        _check_size(device, header)
        if device.read_only:
            raise ValueError("the diff is read-only: creating it needs a device to write to")
        if any(await device.read(0, header.page)):
            raise FileExistsError(
                errno.EEXIST,
                "the diff is in use: open it by Overlay.open(), or write zeroes over its"
                f" first {header.page} bytes to make a new one of it",
            )
        # The header comes last: without it the device is no diff yet, and create() can be repeated.
        await device.write_zeroes(header.page, header.map_size, may_trim=True)
        await device.flush()
        diff = cls(device, header)
        await diff.rewrite(header)
        return diff

    @classmethod
    async def open(cls, device: BlockDevice) -> Self:
        """Open the diff on a device: read the header and the map.

        Raises:
            ValueError: the device holds no diff, or one of another format, is truncated, or has
                larger blocks.
            OSError: the diff is damaged, or cannot be read.

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
        """Whether no flush is running, and the map in the diff is up to date."""
        return not self._blockmap.is_changed and self.flush.is_idle

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written or trimmed."""
        return self._blockmap.run(0, self.header.size) == (BASE, self.header.size)

    def run(self, offset: int, end: int) -> tuple[int, int]:
        """Return where the contents of the block at ``offset`` are, and where that run ends.

        Unlike in the map, a block beyond the part of the base that shows through is ZERO.
        """
        state, stop = self._blockmap.run(offset, end)
        base_size = self.header.base_size
        if state == BASE and stop > base_size:
            return (ZERO, stop) if offset >= base_size else (BASE, base_size)
        return state, stop

    def runs(self, offset: int, end: int) -> Iterator[Run]:
        """Yield all runs in a range, each by the state when it is reached."""
        while offset < end:
            state, stop = self.run(offset, end)
            yield state, offset, stop
            offset = stop

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read blocks that are DATA."""
        return await self.device.read(self._data + offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write these blocks to the diff, which makes them DATA."""
        await self._reserve(offset, offset + len(data))
        await self.device.write(self._data + offset, data)
        self._blockmap.mark(offset, offset + len(data), DATA)

    async def allocate(self, offset: int, length: int) -> None:
        """Make these blocks DATA that is all zeroes, with space allocated for them."""
        await self._reserve(offset, offset + length)
        await self.device.write_zeroes(self._data + offset, length, may_trim=False)
        self._blockmap.mark(offset, offset + length, DATA)

    async def trim(self, offset: int, length: int) -> None:
        """Make these blocks ZERO, like :meth:`zero`; skip those that a full disk cannot record."""
        await run_bounded(
            partial(self._trim, *run) for run in list(self.runs(offset, offset + length))
        )

    async def _trim(self, state: int, begin: int, end: int) -> None:
        try:
            await self._zero(state, begin, end)
        except OSError as exc:
            # In a page that is not allocated no block is DATA, so there is nothing to give back,
            # and a trim must work on a full disk.
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
        if state == DATA and can(self.device, "write_zeroes"):
            await self.device.write_zeroes(self._data + begin, end - begin, may_trim=True)
        if state != ZERO:  # beyond the base a block is ZERO without being so in the map
            self._blockmap.mark(begin, end, ZERO)

    async def hide(self, offset: int, end: int) -> None:
        """Set blocks to ZERO in the map that are so only because the base ends before them."""
        for state, begin, stop in self.runs(offset, end):
            if state == ZERO:
                await self._reserve(begin, stop)
                self._blockmap.mark(begin, stop, ZERO)

    def clear(self) -> None:
        """Set all blocks to BASE. Their space stays allocated until :meth:`release`."""
        for state, begin, end in self.runs(0, self.header.size):
            if state != BASE:
                self._blockmap.mark(begin, end, BASE)

    async def release(self) -> None:
        """Trim the blocks that are BASE. No reader may hold a view of them."""
        size = self.header.size
        await run_bounded(
            partial(self.device.trim, self._data + begin, end - begin)
            for state, begin, end in self.runs(0, size)
            if state == BASE
        )

    async def rewrite(self, header: DiffHeader) -> None:
        """Replace the header durably by one of the same geometry."""
        await self.device.write(0, memoryview(header.serialize()))
        await self.device.flush()
        self.header = header

    async def _flush(self) -> None:
        """Flush by the second rule at the top of this module."""
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
        """Allocate the pages of the map for these blocks, once each."""
        for at in self._blockmap.unreserved(offset, end):
            task = self._reserving.get(at)
            if task is None:
                task = self._reserving[at] = asyncio.create_task(self._reserve_page(at))
                task.add_done_callback(partial(self._reserved, at))
            # One task for all requests, which is not cancelled with one of them: zeroes that arrive
            # late would overwrite what a flush has written.
            await wait_shielded(task)

    async def _reserve_page(self, at: int) -> None:
        await asyncio.sleep(0)  # a loop may start tasks at once, before this one is known
        page = self.header.page
        await self.device.write_zeroes(page + at, page, may_trim=False)
        self._blockmap.reserve(at)

    def _reserved(self, at: int, _task: asyncio.Task[None]) -> None:
        del self._reserving[at]

    async def _load(self) -> None:
        """Read the map; skip holes and zeroes of the diff, which mean BASE."""
        page = self.header.page
        position, end = page, page + self.header.map_size
        while position < end:
            found = check_extents(await self.device.extents(position, end - position))
            for length, _, zero in found:
                stop = min(position + length, end)
                if not zero:
                    # Extents need not be aligned to pages.
                    await self._load_part(round_down(position, page), round_up(stop, page))
                position = stop

    async def _load_part(self, begin: int, end: int) -> None:
        for offset, length in split_range(begin, end, _MAX_READ):
            part = await self.device.read(offset, length)
            self._blockmap.load([(offset - self.header.page, bytes(part))])


def _check_size(device: BlockDevice, header: DiffHeader) -> None:
    if device.size < header.end:
        raise ValueError(
            f"the diff has {device.size} bytes, but {header.end} are needed for an overlay of"
            f" {header.size} (see Overlay.diff_size())"
        )
    if device.block_size > header.block_size:
        raise ValueError(
            f"the diff has blocks of {device.block_size} bytes, the overlay of"
            f" {header.block_size}: open the diff with block_size={header.block_size}, and the base"
            f" (?block_size={header.block_size} after a SPEC)"
        )
