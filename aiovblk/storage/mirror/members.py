"""The members of a mirror together: read with failover, write to all, drop those that fail.

Invariant: members that are in sync hold the same, except in the regions of ``possibly_divergent``;
what a member that is not in sync lacks is in its ``missed``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count
from typing import TypeVar

from ...aio.rangelock import RangeLock
from ...device import BlockDevice, Extent
from ..extents import common
from .member import Member, on_each

T = TypeVar("T")

logger = logging.getLogger("aiovblk")

REGION = 1024 * 1024
"""Bytes of a region, the unit in which missed writes are tracked, at least."""

_MAX_REGIONS = 1 << 16
"""Regions of a member, about; those of a large device are larger."""

Call = Callable[[BlockDevice], Awaitable[object]]


class Members:
    """The devices of a mirror, divided into regions. Each region is read from one member.

    Args:
        devices: the members.
        on_drop: called with a member that is dropped, and the error.

    Attributes:
        ranges: locks the ranges that are being changed.
        region: bytes of a region.
        clock: a logical clock, which orders writes and flushes.
        possibly_divergent: the regions in which members that are in sync may differ.

    """

    def __init__(
        self,
        devices: Sequence[BlockDevice],
        on_drop: Callable[[BlockDevice, BaseException], object],
    ) -> None:
        self._members = [Member(device) for device in devices]
        self._on_drop = on_drop
        self.ranges = RangeLock()
        self.region = max(REGION, 1 << (self.size // _MAX_REGIONS).bit_length())
        self.clock = count(1)
        self.possibly_divergent: set[int] = set()

    def __iter__(self) -> Iterator[Member]:
        """Iterate over all members."""
        return iter(self._members)

    @property
    def size(self) -> int:
        """Bytes of each member."""
        return self._members[0].device.size

    def find(self, device: BlockDevice) -> Member:
        """Return the member that is this device.

        Raises:
            ValueError: it is no member.

        """
        for member in self._members:
            if member.device is device:
                return member
        raise ValueError(f"{device!r} is no member of this mirror")

    # Reading

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Split a range at the borders of regions; yield begin and end of each part."""
        end = offset + length
        while offset < end:
            border = min(end, (offset // self.region + 1) * self.region)
            yield offset, border
            offset = border

    async def read(self, begin: int, end: int) -> bytes | bytearray | memoryview:
        """Read from one member; the range must lie within one region."""
        return await self.ask(begin, lambda device: device.read(begin, end - begin))

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return what all members that are in sync have in common: any of them may be read."""
        answers = await asyncio.gather(
            *(member.device.extents(offset, length) for member in self._members if member.in_sync),
            return_exceptions=True,
        )
        return list(common([_extents_in(answer, length) for answer in answers]))

    async def ask(self, offset: int, call: Callable[[BlockDevice], Awaitable[T]]) -> T:
        """Call the member that is read at ``offset``; if it fails, the next one (failover).

        Raises:
            OSError: all members that are in sync have failed (EIO).

        """
        error: OSError | None = None
        for member in self._in_order(offset):
            if not member.in_sync:
                continue
            try:
                return await call(member.device)
            except OSError as exc:
                logger.warning("mirror: a member failed to read at %d: %s", offset, exc)
                error = exc
        raise OSError(errno.EIO, f"no member could be read at {offset}") from error

    def _in_order(self, offset: int) -> list[Member]:
        """Return all members, in the order in which to try them.

        The first depends on the region only, not on which members are in sync: so a region is read
        from the same member as long as that one is in sync.
        """
        first = offset // self.region % len(self._members)
        return [*self._members[first:], *self._members[:first]]

    # Changing

    async def change(self, offset: int, length: int, call: Call) -> None:
        """Change all members, after overlapping changes in progress."""
        async with self.ranges.hold(offset, offset + length):
            await self.change_held(offset, length, call)

    async def change_held(self, offset: int, length: int, call: Call) -> None:
        """Change all members; the caller holds the range. Record which members missed it.

        Raises:
            OSError: all members that are in sync have failed (EIO); they may differ there now.

        """
        regions = range(offset // self.region, -(-(offset + length) // self.region))
        members = [member for member in self._members if member.is_written]
        written: set[Member] = set()
        try:
            outcomes = await on_each(members, call)
            written = {
                member for member, outcome in zip(members, outcomes, strict=True) if outcome is None
            }
            if failure := self._drop_failed(members, outcomes):
                raise failure
        except BaseException:
            self.possibly_divergent.update(regions)
            raise
        finally:
            now = next(self.clock)
            for member in self._members:
                member.record_write(regions, now, written=member in written)

    async def trim(self, offset: int, length: int) -> None:
        """Trim all members.

        Raises:
            OSError: all have failed (EIO).

        """
        async with self.ranges.hold(offset, offset + length):
            members = [member for member in self._members if member.is_written]
            outcomes = await on_each(members, lambda device: device.trim(offset, length))
        # A member that failed has missed nothing: the contents of trimmed bytes are undefined.
        if None not in outcomes:
            raise _failure_of_all(outcomes)

    async def flush(self) -> None:
        """Flush all members.

        Raises:
            OSError: all members that are in sync have failed (EIO).

        """
        began = next(self.clock)
        members = [member for member in self._members if member.is_written]
        outcomes = await on_each(members, lambda device: device.flush())
        failure = self._drop_failed(members, outcomes)
        for member, outcome in zip(members, outcomes, strict=True):
            member.flushed(began, succeeded=outcome is None)
        if failure:
            raise failure

    async def unmount(self) -> None:
        """Unmount all members, then raise the first error."""
        for outcome in await on_each(self._members, lambda device: device.unmount()):
            if outcome is not None:
                raise outcome

    def _drop_failed(
        self, members: Sequence[Member], outcomes: Sequence[BaseException | None]
    ) -> OSError | None:
        """Drop the members that failed a request which another one in sync has done.

        Returns:
            An error if all members in sync have failed. None is dropped then.

        """
        both = [each for each in zip(members, outcomes, strict=True) if each[0].in_sync]
        if all(outcome is not None for _, outcome in both):
            return _failure_of_all(outcomes)
        for member, outcome in both:
            if outcome is not None:
                member.mark_failed()
                logger.error("mirror: member %r failed, and is dropped: %r", member.device, outcome)
                self._on_drop(member.device, outcome)
        return None


def _failure_of_all(outcomes: Sequence[BaseException | None]) -> OSError:
    error = next((outcome for outcome in outcomes if outcome is not None), None)
    failure = OSError(errno.EIO, f"all members of the mirror have failed, one with {error!r}")
    failure.__cause__ = error
    return failure


def _extents_in(answer: Sequence[Extent] | BaseException, length: int) -> Sequence[Extent]:
    if isinstance(answer, OSError):
        return [Extent(length)]  # unknown, so data
    if isinstance(answer, BaseException):
        raise answer
    return answer
