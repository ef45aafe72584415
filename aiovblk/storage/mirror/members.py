"""The members of a mirror together: who is read, who is written, and who is out."""

from __future__ import annotations

import asyncio
import errno
import logging
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import accumulate, count
from typing import TypeVar

from ...aio.rangelock import RangeLock
from ...device import BlockDevice, Extent
from .member import Member, on_each

T = TypeVar("T")

logger = logging.getLogger("aiovblk")

REGION = 1024 * 1024
"""Bytes, at least, of a region."""

_MAX_REGIONS = 1 << 16

Call = Callable[[BlockDevice], Awaitable[object]]


class Members:
    """Several devices that hold the same, in regions that are read from one of them each.

    Args:
        devices: they.
        on_drop: called with one that is put out, and why.

    Attributes:
        ranges: what is being changed.
        region: bytes of one of them.
        clock: when things happen.
        possibly_divergent: the regions in which members may differ that are in.

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
        """All of them."""
        return iter(self._members)

    @property
    def size(self) -> int:
        """Bytes of each."""
        return self._members[0].device.size

    def find(self, device: BlockDevice) -> Member:
        """The member that is this device.

        Raises:
            ValueError: there is none.

        """
        for member in self._members:
            if member.device is device:
                return member
        raise ValueError(f"{device!r} is no member of this mirror")

    # Reading

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Where the parts of a range begin and end that lie in one region each."""
        end = offset + length
        while offset < end:
            border = min(end, (offset // self.region + 1) * self.region)
            yield offset, border
            offset = border

    async def read(self, begin: int, end: int) -> bytes | bytearray | memoryview:
        """What one of them holds there, within one region."""
        return await self.ask(begin, lambda device: device.read(begin, end - begin))

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """What all of them tell of these."""
        answers = await asyncio.gather(
            *(member.device.extents(offset, length) for member in self._members if member.in_sync),
            return_exceptions=True,
        )
        return list(common([_extents_in(answer, length) for answer in answers]))

    async def ask(self, offset: int, call: Callable[[BlockDevice], Awaitable[T]]) -> T:
        """Have the member that is read there answer, or another one if it cannot."""
        error: OSError | None = None
        for member in self._in_turn(offset):
            if not member.in_sync:
                continue
            try:
                return await call(member.device)
            except OSError as exc:
                logger.warning("a member of a mirror failed a request at %d: %s", offset, exc)
                error = exc
        raise OSError(errno.EIO, f"no member could be read at {offset}") from error

    def _in_turn(self, offset: int) -> list[Member]:
        """All members; who is first does not depend on which of the others are in."""
        first = offset // self.region % len(self._members)
        return [*self._members[first:], *self._members[:first]]

    # Changing

    async def change(self, offset: int, length: int, call: Call) -> None:
        """Make a change on all members, when no other is being made there."""
        async with self.ranges.hold(offset, offset + length):
            await self.change_held(offset, length, call)

    async def change_held(self, offset: int, length: int, call: Call) -> None:
        """Make a change on all members, and note who has missed it."""
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
        """Have all members trim."""
        async with self.ranges.hold(offset, offset + length):
            members = [member for member in self._members if member.is_written]
            outcomes = await on_each(members, lambda device: device.trim(offset, length))
        # Who fails one has missed nothing: these bytes may be anything.
        if None not in outcomes:
            raise _failure_of_all(outcomes)

    async def flush(self) -> None:
        """Have all members flush."""
        began = next(self.clock)
        members = [member for member in self._members if member.is_written]
        outcomes = await on_each(members, lambda device: device.flush())
        failure = self._drop_failed(members, outcomes)
        for member, outcome in zip(members, outcomes, strict=True):
            member.flushed(began, succeeded=outcome is None)
        if failure:
            raise failure

    async def unmount(self) -> None:
        """Unmount all of them, and raise what the first has raised that fails."""
        for outcome in await on_each(self._members, lambda device: device.unmount()):
            if outcome is not None:
                raise outcome

    def _drop_failed(
        self, members: Sequence[Member], outcomes: Sequence[BaseException | None]
    ) -> OSError | None:
        """Put out the members that have failed what another one has done.

        Returns:
            An error if there is no such one.

        """
        both = [each for each in zip(members, outcomes, strict=True) if each[0].in_sync]
        if all(outcome is not None for _, outcome in both):
            return _failure_of_all(outcomes)
        for member, outcome in both:
            if outcome is not None:
                member.mark_failed()
                logger.error("a member of a mirror is out: %r failed: %r", member.device, outcome)
                self._on_drop(member.device, outcome)
        return None


def _failure_of_all(outcomes: Sequence[BaseException | None]) -> OSError:
    error = next((outcome for outcome in outcomes if outcome is not None), None)
    failure = OSError(errno.EIO, f"all members of the mirror have failed, one with {error!r}")
    failure.__cause__ = error
    return failure


def _extents_in(answer: Sequence[Extent] | BaseException, length: int) -> Sequence[Extent]:
    if isinstance(answer, OSError):
        return [Extent(length)]  # it cannot tell
    if isinstance(answer, BaseException):
        raise answer
    return answer


def common(answers: Sequence[Sequence[Extent]]) -> Iterator[Extent]:
    """What several tell of the same bytes: a hole is one if all say so, and so are zeroes."""
    ends = [list(accumulate(extent.length for extent in answer)) for answer in answers]
    at = 0
    for end in sorted({each for several in ends for each in several}):
        if end > min(several[-1] for several in ends):
            break
        told = [
            answer[bisect_right(several, at)] for answer, several in zip(answers, ends, strict=True)
        ]
        yield Extent(end - at, all(each.hole for each in told), all(each.zero for each in told))
        at = end
