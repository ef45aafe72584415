"""Several devices that hold the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ...contract import check_inner
from ...device import BlockDevice, Extent
from ..layer import Layer
from .members import Members
from .resync import Resync


class Mirror(Layer):
    """Several devices that hold the same, so that all but one may fail.

    Changes go to all members; a read goes to one, which depends on the place, and to another one if
    that fails. A member that fails a write or a flush which another one has done is out from then
    on: that is logged, nothing is read from it, and what it misses is remembered, for
    :meth:`resync` to bring it back. The last one is never out. What all of them fail fails with
    EIO, and puts none out.

    That a member is out is not stored anywhere. Whoever opens the mirror again must say so
    (``stale``), and not let it be read before it was brought up to date; ``on_drop`` is called
    before the write that put it out returns, so that it can be noted somewhere.

    Durability: what was flushed is durable on all members that are in. A power failure that hits
    several may leave what was not flushed different on each. Reads of one place are answered by the
    same member as long as it is in, so that nothing seems to change; but not any longer. To be sure
    open the mirror with all but one in ``stale`` then, and bring them back.

    Concurrency: that of the members; but changes that overlap are made one after the other, since
    each member might have its own idea of which came last.

    Cancellation: members may differ where a change was cancelled, or failed on all of them. The
    next flush copies these places from the member that is read there to the others.

    Args:
        first: a member, whose handlers the mirror has too.
        second: another.
        others: still others. All have the same size, and blocks of the same size; it is read-only
            if one of them is.
        stale: members that are out at the beginning, and have missed anything.
        on_drop: called with a member that is put out, and why, after that was logged.

    Raises:
        ValueError: the members do not fit each other, or all are stale.

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
        """The members that are in."""
        return tuple(member.device for member in self._members if member.in_sync)

    @property
    def read_only(self) -> bool:
        """Whether one of the members is, unless something else was set."""
        if self._read_only is not None:
            return self._read_only
        return any(member.device.read_only for member in self._members)

    @read_only.setter
    def read_only(self, value: bool) -> None:
        self._read_only = value

    @property
    def blocks(self) -> int:
        """As many as each member has. What is added to a mirror must be the same on all of them."""
        blocks: int = self.inner.blocks
        return blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        for member in self._members:
            member.device.blocks = value

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read from members that are in."""
        runs = list(self._members.runs(offset, length))
        parts = [await self._members.read(begin, end) for begin, end in runs]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Tell what all members agree upon: each trims as it likes, and any may be read."""
        return await self._members.extents(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to all members."""
        if "write" in self._unsupported:  # refused; no member fails for it
            await super().write(offset, data)
            return
        await self._members.change(offset, len(data), lambda device: device.write(offset, data))

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Have all members write zeroes."""
        if "write_zeroes" in self._unsupported:
            await super().write_zeroes(offset, length, may_trim=may_trim)
            return
        await self._members.change(
            offset, length, lambda device: device.write_zeroes(offset, length, may_trim=may_trim)
        )

    async def trim(self, offset: int, length: int) -> None:
        """Pass the hint on to all members, each of which may do with it what it likes."""
        await self._members.trim(offset, length)

    async def flush(self) -> None:
        """Flush all members, once they agree."""
        await self._resync.reconcile()
        await self._members.flush()

    async def cache(self, offset: int, length: int) -> None:
        """Pass the hint on to the member that is read there."""
        await self._members.ask(offset, lambda device: device.cache(offset, length))

    async def unmount(self) -> None:
        """Let go of all members."""
        await self._members.unmount()

    async def resync(
        self, member: BlockDevice, *, advance: Callable[[int], object] = lambda count: None
    ) -> None:
        """Bring a member up to date, and back in, while requests go on.

        What it has missed is copied: where it was written since it was put out, or since its last
        flush before that; all of it if it was stale at the beginning. One that is in is put out
        first, and all of it is copied.

        Args:
            member: which.
            advance: called with the number of bytes that were done since it was last called.

        Raises:
            ValueError: it is no member, or there is no other to copy from.
            RuntimeError: it is being brought back already.
            OSError: it cannot be written, or nobody else can be read. It stays out.

        Cancellation: safe; it stays out, and another call goes on from there.

        """
        await self._resync.resync(self._members.find(member), advance)


def _check(devices: Sequence[BlockDevice], stale: Collection[BlockDevice]) -> None:
    first = devices[0]
    for device in devices:
        check_inner(device, "a member")
        if (device.size, device.block_size) != (first.size, first.block_size):
            raise ValueError(
                f"members of a mirror are of one size: {device.blocks} blocks of"
                f" {device.block_size} bytes are not {first.blocks} of {first.block_size}"
                " (block_size=, or the layer BlockSize, gives a device other blocks)"
            )
    if len({id(device) for device in devices}) < len(devices):
        raise ValueError("a device can be a member of a mirror only once")
    if not all(any(each is device for device in devices) for each in stale):
        raise ValueError("what is stale must be a member")
    if all(any(each is device for each in stale) for device in devices):
        raise ValueError("not all members can be stale")
