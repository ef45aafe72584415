"""Resync a member of a mirror that has missed writes; reconcile members that may differ."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

from ...device import BlockDevice
from ..ranges import split_range
from .member import Member
from .members import REGION, Members

REGIONS_PER_FLUSH = 64
"""Regions to copy before a flush, which makes them durable; an interrupted resync repeats them."""

logger = logging.getLogger("aiovblk")


class Resync:
    """Copies regions from the member that they are read from to other members.

    A region is copied in pieces; each is locked against changes while it is copied.

    Args:
        members: the members of the mirror.

    """

    def __init__(self, members: Members) -> None:
        self._members = members

    def mark_stale(self, member: Member) -> None:
        """Drop a member, as one that has missed all regions.

        Raises:
            ValueError: there is no other member in sync.

        """
        if not any(other.in_sync for other in self._members if other is not member):
            raise ValueError("there is no other member to copy from")
        member.mark_failed()
        member.missed.update(range(-(-self._members.size // self._members.region)))

    async def resync(self, member: Member, advance: Callable[[int], object]) -> None:
        """Copy the regions that a member has missed, until there are none.

        Args:
            member: the member; one that is in sync is copied as a whole.
            advance: called with the number of bytes done since the last call.

        """
        if member.is_syncing:
            raise RuntimeError("a resync of this member is running already")
        if member.in_sync:
            self.mark_stale(member)
        member.is_syncing = True
        try:
            # Wait for changes that began without this member: what they make it miss is recorded
            # before the first region is copied.
            async with self._members.ranges.hold(0, self._members.size):
                pass
            while member.missed:
                for region in sorted(member.missed)[:REGIONS_PER_FLUSH]:
                    advance(await self._copy_to(member, region))
                began = next(self._members.clock)
                await member.device.flush()
                member.flushed(began, succeeded=True)
            member.in_sync = True
        finally:
            member.is_syncing = False
            if not member.in_sync:
                member.mark_failed()

    async def reconcile(self) -> None:
        """Copy the regions in which members that are in sync may differ, to all of them.

        An error is only logged, and the next flush retries: the change of these regions was
        cancelled or has failed, so their contents are undefined.
        """
        if sum(member.in_sync for member in self._members) == 1:
            self._members.possibly_divergent.clear()  # what the others lack is in their `missed`
        for region in sorted(self._members.possibly_divergent):
            try:
                await self._copy_to_all(region)
            except OSError as exc:
                logger.warning("mirror: members may differ in region %d: %s", region, exc)

    async def _copy_to(self, member: Member, region: int) -> int:
        """Copy a region to a member; return the number of bytes."""
        member.missed.discard(region)  # writes go to this member too, from here on
        done = 0
        written = False
        try:
            for begin, end in self._pieces(region):
                async with self._members.ranges.hold(begin, end):
                    data = await self._members.read(begin, end)
                    await _put(begin, data, member.device)
                done += end - begin
            written = True
        finally:
            member.record_write([region], next(self._members.clock), written=written)
        return done

    async def _copy_to_all(self, region: int) -> None:
        """Copy a region from the member that it is read from to all members."""
        self._members.possibly_divergent.discard(region)
        try:
            for begin, end in self._pieces(region):
                async with self._members.ranges.hold(begin, end):
                    data = await self._members.read(begin, end)
                    await self._members.change_held(begin, end - begin, partial(_put, begin, data))
        except BaseException:
            self._members.possibly_divergent.add(region)
            raise

    def _pieces(self, region: int) -> Iterator[tuple[int, int]]:
        """Yield begin and end of the pieces of a region that are copied at once."""
        size = self._members.region
        end = min((region + 1) * size, self._members.size)
        for begin, length in split_range(region * size, end, REGION):
            yield begin, begin + length


async def _put(offset: int, data: bytes | bytearray | memoryview, device: BlockDevice) -> None:
    """Write to a device what another one holds; zeroes may become a hole."""
    view = memoryview(data).cast("B")
    if not view[0] and bytes(view) == bytes(len(view)):
        await device.write_zeroes(offset, len(view), may_trim=True)
    else:
        await device.write(offset, view)
