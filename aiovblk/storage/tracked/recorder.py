"""Recording which blocks change: bits, open regions and the header, in the order that is safe.

Invariants, for each interval that the durable header, or one that may replace it, has last:

* A change is passed to the device after its bits were set: in the page cache, which outlives the
  process, of each bitmap that such a header may name as the present one.
* A bit that is set is durable, or its region is open in every such header.

So after ``kill -9`` the bitmaps are exact, and after a power failure they are exact but for the
regions that were open, which count as dirty.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from ...aio.coalesce import CoalescedCall
from ...aio.tasks import wait_shielded
from ..ranges import split_range
from . import points
from .bitmap import Bitmap
from .file import BitmapFile
from .header import STRIPE_BITS, Header, Interval, region_for
from .regions import OpenRegions, runs_of

T = TypeVar("T")

_MAX_DOUBTS = 2 * 4096  # more than there are regions, to which they are rounded then


class TrackedChange:
    """A change of blocks, from before they are marked until the device is done with them.

    A context manager: entering it raises OSError if changes cannot be recorded any more.
    """

    __slots__ = ("_recorder", "first", "last")

    def __init__(self, recorder: Recorder, first: int, last: int) -> None:
        self._recorder = recorder
        self.first = first
        self.last = last

    def __enter__(self) -> None:
        self._recorder.begin(self)

    def __exit__(self, kind: object, *failure: object) -> None:
        self._recorder.end(self, failed=kind is not None)


class Recorder:
    """Records changes in the bitmap of the present interval.

    Concurrency: of one event loop.

    Args:
        file: that holds the bitmaps.
        header: what it says, durably.
        live: the bitmap of the present interval; None if nothing has to be recorded.
        boot: which run of the kernel this is, see :func:`.file.boot_id`.
        path: of the file, for messages.
        read_only: whether nothing is ever written to the file.

    Attributes:
        header: as it was written last.
        live: the bitmap of its last interval.

    """

    def __init__(
        self,
        file: BitmapFile,
        header: Header,
        live: bytearray | None,
        *,
        boot: str,
        path: str,
        read_only: bool,
    ) -> None:
        self.file = file
        self.header = header
        self.live = None if live is None else Bitmap(file, header.intervals[-1].slot, live)
        self._marking: tuple[Bitmap, ...] = () if self.live is None else (self.live,)
        self._boot = boot
        self._path = path
        self._read_only = read_only
        self._set_geometry(OpenRegions(header.regions, header.open))
        self._changes: set[TrackedChange] = set()
        self._doubts: dict[tuple[int, int], None] = {}
        self._open_wanted = CoalescedCall(self._store_wanted)
        self._failure: OSError | None = None
        self._lock = asyncio.Lock()  # held while a header is written and made durable
        self._threads = ThreadPoolExecutor(2, "aiovblk bitmaps")

    def _set_geometry(self, regions: OpenRegions) -> None:
        self._regions = regions
        self._bits = self.header.bits
        self._region_shift = (self.header.region // self.header.granularity).bit_length() - 1

    # Changes of the device

    def check(self) -> None:
        """Raise OSError if changes cannot be recorded any more."""
        if self._failure is not None:
            raise OSError(*self._failure.args)

    def change(self, first: int, last: int) -> TrackedChange:
        """Return a context in which these blocks are changed, once they are marked."""
        return TrackedChange(self, first, last)

    def begin(self, change: TrackedChange) -> None:
        """Note a change that begins."""
        if self._failure is not None:
            self.check()
        self._changes.add(change)

    def end(self, change: TrackedChange, *, failed: bool) -> None:
        """Note its end. One that has failed, or was cancelled, may still be made."""
        self._changes.remove(change)
        if failed:
            self._doubts[change.first, change.last] = None
            if len(self._doubts) > _MAX_DOUBTS:
                self._round_doubts()

    def mark_now(self, first: int, last: int) -> bool:
        """Set the bits of a range, if that is possible without waiting; return whether it was."""
        for bitmap in self._marking:
            if not bitmap.has(first, last):
                return last - first < STRIPE_BITS and self._mark_if_open(first, last)
        return True

    async def mark(self, first: int, last: int) -> None:
        """Set the bits of a range; open the regions for that.

        Raises:
            OSError: the file cannot be written, or not be made durable.

        """
        for begin, count in split_range(first, last + 1, STRIPE_BITS):
            end = begin + count - 1
            while not self._mark_if_open(begin, end):
                self._regions.want(begin >> self._region_shift, end >> self._region_shift)
                await self._open_wanted()
            if end < last:
                await asyncio.sleep(0)  # let other tasks run: it may be a gigabit

    def _mark_if_open(self, first: int, last: int) -> bool:
        if last >= self._bits:  # the device has shrunk since the request was made
            last = self._bits - 1
            if first > last:
                return True
        if self._marking:
            regions, shift = self._regions, self._region_shift
            if not regions.are_open(first >> shift, last >> shift):
                return False
            for bitmap in self._marking:
                bitmap.set(first, last)
            regions.use(first >> shift, last >> shift)
        return True

    def _round_doubts(self) -> None:
        """Round what is in doubt to regions, of which there are fewer."""
        shift = self._region_shift
        regions = {
            region
            for first, last in self._doubts
            for region in range(first >> shift, (last >> shift) + 1)
        }
        bits = self.header.bits
        self._doubts = {
            (region << shift, min((region + 1 << shift), bits) - 1): None for region in regions
        }

    # The header

    async def store(self, change: Callable[[Header], Header]) -> None:
        """Change the header, and make it durable.

        Raises:
            OSError: it cannot be written; if it was the sync that failed, nothing can be recorded
                any more.

        """
        async with self._lock:
            await self._store(change(self.header))

    async def _store(self, header: Header) -> None:
        number = self._put(header)
        await self.sync()
        self.file.header_is_durable(number)

    def _put(self, header: Header) -> int:
        header = replace(header, boot=self._boot)
        number = self.file.put_header(header)
        self.header = header
        return number

    async def sync(self) -> None:
        """Make all durable that was written to the file."""
        try:
            await self.run(self.file.flush)
        except OSError as exc:
            self._fail(exc)
            raise

    async def run(self, call: Callable[..., T], *arguments: object) -> T:
        """Call something that blocks in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _fail(self, exc: OSError) -> None:
        # The kernel may have dropped what it could not write: the page cache proves nothing now.
        reason = f"changes cannot be recorded in {self._path} any more ({exc.strerror})"
        self._failure = OSError(
            exc.errno or errno.EIO,
            f"{reason}: unmount, delete the file, and copy everything once",
        )

    async def _store_wanted(self) -> None:
        async with self._lock:
            regions = self._regions
            flags = regions.plan()
            opened = points.without_checksum(self.header)
            await self._store(replace(opened, open=tuple(runs_of(flags))))
            regions.opened(flags)

    # Flushes of the program

    def should_close_regions(self) -> bool:
        """Note a flush; return whether regions should be closed."""
        return bool(self._marking) and self._failure is None and self._regions.should_close()

    async def close_regions(self) -> None:
        """Make the bits durable, and close the regions that are not used any more."""
        async with self._lock:
            regions = self._regions
            regions.begin_closing()
            try:
                await self.sync()
            except BaseException:
                regions.cancel_closing()
                raise
            if regions is not self._regions:  # it was resized meanwhile
                return
            regions.finish_closing()
            # Not flushed: whether this header or the last one is found, it is true.
            self._put(replace(self.header, open=tuple(runs_of(regions.flags))))

    # Intervals

    async def begin_interval(self, slot: int) -> Bitmap:
        """Begin to set bits in one more bitmap, all durable; with what is just being changed.

        Returns:
            The bitmap. The header has to name it as that of the last interval, and
            :meth:`end_intervals` is called when that is durable.

        """
        length = self.header.bitmap_size
        await self.run(self.file.extend, self.header.end)
        await self.run(self.file.clear, slot, length)
        bitmap = Bitmap(self.file, slot, bytearray(self.header.bitmap_size))
        before = self._marking
        self._marking = (*before, bitmap)
        try:
            for first, last in self._unfinished():
                if first < self.header.bits:
                    bitmap.set(first, min(last, self.header.bits - 1))
            await self.sync()
        except BaseException:
            self._marking = before
            raise
        return bitmap

    def end_intervals(self, live: Bitmap | None) -> None:
        """Set bits in one bitmap only, or none, from now on."""
        self.live = live
        self._marking = () if live is None else (live,)

    def _unfinished(self) -> Iterator[tuple[int, int]]:
        """Yield the blocks that may still change by requests that were made before now."""
        return chain(((each.first, each.last) for each in self._changes), self._doubts)

    def resize(self, size: int) -> None:
        """Prepare for another size of the device: what is added or cut off counts as changed.

        It blocks until that is durable, since nothing can wait there; it is seldom.

        Raises:
            OSError: the file cannot be written.

        """
        old = self.header
        region = region_for(size, old.granularity)
        header = replace(old, size=size, region=region)
        self.file.extend(header.end)
        for bitmap in self._marking:
            bitmap.extend(header.bitmap_size)
            if header.bits != old.bits:
                bitmap.set(min(old.bits, header.bits), max(old.bits, header.bits) - 1)
        intervals = tuple(replace(each, checksum=None) for each in header.intervals)
        regions = ((0, header.regions),) if intervals else ()
        header = replace(header, open=regions, intervals=intervals)
        number = self._put(header)
        self._set_geometry(OpenRegions(header.regions, header.open))
        try:
            self.file.flush()
        except OSError as exc:
            self._fail(exc)
            raise
        self.file.header_is_durable(number)

    # The end

    async def close(self) -> None:
        """Make all durable, with checksums, and close the file."""
        async with self._lock:
            try:
                await wait_shielded(asyncio.create_task(self.run(self._finish)))
            finally:
                self._threads.shutdown(wait=False)

    def _finish(self) -> None:
        try:
            header = self.header
            is_clean = not header.open and all(
                each.checksum is not None for each in header.intervals
            )
            if self._failure is None and not is_clean and not self._read_only:
                self.file.flush()
                intervals = tuple(map(self._with_checksum, header.intervals))
                self.file.put_header(replace(header, boot="", open=(), intervals=intervals))
                self.file.flush()
        finally:
            self.file.close()

    def _with_checksum(self, interval: Interval) -> Interval:
        if interval.checksum is not None:
            return interval
        checksum = self.file.checksum(interval.slot, self.header.bitmap_size)
        return replace(interval, checksum=checksum)
