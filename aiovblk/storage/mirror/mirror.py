"""The mirror layer: replicate a device on several members, which may fail, and resync them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ...contract import check_inner
from ...device import BlockDevice, Extent
from ..layer import Layer
from .members import Members
from .resync import Resync


class Mirror(Layer):
    """Replicates a device on several members (RAID 1), of which all but one may fail.

    Changes go to all members. A read goes to one, which depends on the region, and to another one
    if that fails. A member that fails a write or a flush which another one has done is dropped: an
    error is logged, it is not read any more, and the regions that it misses are recorded, for
    :meth:`resync`. The last member is never dropped. A request that fails on all members fails with
    EIO, and none is dropped.

    That a member was dropped is not stored. A program that opens the mirror again must pass it as
    ``stale``, so that it is not read before its resync. To have it stored somewhere, use
    ``on_drop``, which is called before the write that dropped the member returns.

    Durability: what was flushed is durable on all members that are in sync. A power failure of
    several members may leave different contents on each where writes were not flushed. Each region
    is read from the same member as long as that one is in sync, so the difference does not show
    until then. To be sure, open the mirror with all but one member in ``stale``, and resync them.

    Concurrency: that of the members; but changes that overlap are made one after the other, since
    each member could make them in another order.

    Cancellation: where a change was cancelled, or failed on all members, they may differ. The next
    flush copies these regions from the member that is read there to the others.

    Args:
        first: a member; the mirror has the handlers that this one has.
        second: another member.
        others: further members. All have the same size and block size; the mirror is read-only if
            one of them is.
        stale: members that are not in sync at the beginning, and have missed everything.
        on_drop: called with a member that is dropped, and the error, after that was logged.

    Raises:
        ValueError: the members have different sizes or block sizes, or all are stale.

    """

    provides = frozenset({"flush"})

    def __init__(
        self,
        first: BlockDevice,
        second: BlockDevice,
        *others: BlockDevice,
        stale: Collection[BlockDevice] = (),
        on_drop: Callable[[BlockDevice, BaseException], object] = lambda member, error: None,
    ) -> None:
        super().__init__(first)
        devices = (first, second, *others)
        _check(devices, stale)
        self.rotational = any(device.rotational for device in devices)
        self.multi_conn = False
        self._members = Members(devices, on_drop)
        self._resync = Resync(self._members)
        for device in stale:
            self._resync.mark_stale(self._members.find(device))

    @property
    def in_sync(self) -> tuple[BlockDevice, ...]:
        """The members that are in sync."""
        return tuple(member.device for member in self._members if member.in_sync)

    @property
    def read_only(self) -> bool:
        """Whether one of the members is read-only, unless this was set."""
        if self._read_only is not None:
            return self._read_only
        return any(member.device.read_only for member in self._members)

    @read_only.setter
    def read_only(self, value: bool) -> None:
        self._read_only = value

    @property
    def blocks(self) -> int:
        """The number of blocks of each member; setting it resizes all of them.

        The contents of added blocks must be the same on all members.
        """
        blocks: int = self.inner.blocks
        return blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        for member in self._members:
            member.device.blocks = value

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read each region from one member, or from another one if that fails."""
        runs = list(self._members.runs(offset, length))
        parts = [await self._members.read(begin, end) for begin, end in runs]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return what is a hole, or zero, on all members: any may be read, and trims may differ."""
        return await self._members.extents(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to all members."""
        await self._members.change(offset, len(data), lambda device: device.write(offset, data))

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes to all members."""
        await self._members.change(
            offset, length, lambda device: device.write_zeroes(offset, length, may_trim=may_trim)
        )

    async def trim(self, offset: int, length: int) -> None:
        """Forward the hint to all members; each may ignore it."""
        await self._members.trim(offset, length)

    async def flush(self) -> None:
        """Reconcile regions in which members may differ, then flush all members."""
        await self._resync.reconcile()
        await self._members.flush()

    async def cache(self, offset: int, length: int) -> None:
        """Forward the hint to the member that is read there."""
        await self._members.ask(offset, lambda device: device.cache(offset, length))

    async def unmount(self) -> None:
        """Unmount all members."""
        await self._members.unmount()

    async def resync(
        self, member: BlockDevice, *, advance: Callable[[int], object] = lambda count: None
    ) -> None:
        """Copy to a member what it has missed, until it is in sync, while requests go on.

        Copied are the regions that were written since it was dropped, or since its last flush
        before that; all regions if it was ``stale``. A member that is in sync is dropped first, and
        copied as a whole.

        Args:
            member: the member.
            advance: called for progress, with the number of bytes done since the last call.

        Raises:
            ValueError: it is no member, or there is no other one in sync to copy from.
            RuntimeError: a resync of this member is running already.
            OSError: it cannot be written, or no other can be read. It stays dropped.

        Cancellation: safe; the member stays dropped, and the next resync continues from there.

        """
        await self._resync.resync(self._members.find(member), advance)


def _check(devices: Sequence[BlockDevice], stale: Collection[BlockDevice]) -> None:
    first = devices[0]
    for device in devices:
        check_inner(device, "a member")
        if (device.size, device.block_size) != (first.size, first.block_size):
            raise ValueError(
                f"members of a mirror must have the same size: {device.blocks} blocks of"
                f" {device.block_size} bytes are not {first.blocks} of {first.block_size}"
                " (block_size=, or the layer BlockSize, gives a device other blocks)"
            )
    if len({id(device) for device in devices}) < len(devices):
        raise ValueError("a device can be a member of a mirror only once")
    if not all(any(each is device for device in devices) for each in stale):
        raise ValueError("each device in stale must be a member")
    if all(any(each is device for each in stale) for device in devices):
        raise ValueError("not all members can be stale")
