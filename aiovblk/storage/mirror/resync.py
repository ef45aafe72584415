"""How the members of a mirror come to hold the same again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

from ...device import BlockDevice
from .member import Member
from .members import REGION, Members

REGIONS_PER_FLUSH = 64
"""Regions that are copied before a flush, and copied again if there never is one."""

logger = logging.getLogger("aiovblk")


class Resync:
    """Copies from the member that is read in a place to others.

    Nothing is changed there meanwhile, a piece of a region at a time.

    Args:
        members: of the mirror.

    """

    def __init__(self, members: Members) -> None:
        self._members = members

    def mark_stale(self, member: Member) -> None:
        """Put a member out, as one that has missed everything.

        Raises:
            ValueError: there is no other one.

        """
        if not any(other.in_sync for other in self._members if other is not member):
            raise ValueError("there is no other member to copy from")
        member.mark_failed()
        member.missed.update(range(-(-self._members.size // self._members.region)))

    async def resync(self, member: Member, advance: Callable[[int], object]) -> None:
        """Copy what a member has missed until it has missed nothing."""
        if member.is_syncing:
            raise RuntimeError("this member is being brought back already")
        if member.in_sync:
            self.mark_stale(member)
        member.is_syncing = True
        try:
            # Changes that began without it are noted before anything is compared.
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
        """Copy what members that are in may hold different versions of.

        It is no matter if that fails: nobody was told that these places hold anything.
        """
        if sum(member.in_sync for member in self._members) == 1:
            self._members.possibly_divergent.clear()  # what others have missed is known
        for region in sorted(self._members.possibly_divergent):
            try:
                await self._copy_to_all(region)
            except OSError as exc:
                logger.warning("members of a mirror may differ in region %d: %s", region, exc)

    async def _copy_to(self, member: Member, region: int) -> int:
        """Copy a region to a member; returns how many bytes these are."""
        member.missed.discard(region)  # what is written from here on is written to it, too
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
        size = self._members.region
        end = min((region + 1) * size, self._members.size)
        return ((begin, min(begin + REGION, end)) for begin in range(region * size, end, REGION))


async def _put(offset: int, data: bytes | bytearray | memoryview, device: BlockDevice) -> None:
    """Write what another device holds; zeroes may become a hole."""
    view = memoryview(data).cast("B")
    if not view[0] and bytes(view) == bytes(len(view)):
        await device.write_zeroes(offset, len(view), may_trim=True)
    else:
        await device.write(offset, view)
