"""A disk that is another disk, and what was written since."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Self

from ...aio.gate import PausableGate
from ...aio.gather import gather_all
from ...contract import check_inner
from ...device import BlockDevice, Extent
from ..layer import Layer
from .blockmap import BASE, DATA, ZERO
from .committing import commit, preserve_differences
from .diff import Diff
from .files import open_file
from .format import DiffHeader

Identity = str | Callable[[int], Awaitable[str]]
"""What a base is; or a function that finds out, given how many bytes of it show."""

_ZEROES = memoryview(bytes(1 << 20))

_MAX_EXTENTS = 1024  # of one answer; whoever wants more asks again


class Overlay(Layer):
    """A disk that reads as ``base`` until it is written, and keeps what is written in a ``diff``.

    The base is only read. Any number of overlays may lie over it at the same time, each with a
    diff of its own, as long as nobody writes to it; see :class:`~aiovblk.storage.Shared` for
    several in one process. The diff is a device as well, usually a sparse file; it takes space only
    for what was written, and gives back what is trimmed.

    It is made by :meth:`create`, :meth:`open` or :meth:`file`, which are async: the geometry of
    the disk is in the diff, so the diff has to be read before the disk can be mounted, and what is
    wrong with it is told then.

    Its blocks have the size of those of the base or the diff, whichever is larger; so no write
    copies anything from the base. What is trimmed reads as zeroes.

    Concurrency: any number of requests at once; what overlaps is as concurrent as on the diff.

    Durability: :meth:`flush` makes durable what was written, with one more write to the diff, and
    one more flush of it, when blocks were written or trimmed for the first time. After a crash at
    any time, each flushed write is there, and each block that was written since its last flush has
    its old contents or the new ones, if that is so on the diff.

    Cancellation: of a request, as on the base and the diff. A flush that has begun is finished.

    Args:
        base: what lies below; it and the diff belong to the overlay from now on.
        diff: what :meth:`create` and :meth:`open` make of a device.

    """

    provides = frozenset({"write", "flush", "trim", "write_zeroes", "extents"})

    def __init__(self, base: BlockDevice, diff: Diff) -> None:
        if not isinstance(diff, Diff):
            raise TypeError("use `await Overlay.open(base, diff)`, or Overlay.create()")
        diff.header.check_base(base)
        super().__init__(base)
        self._diff = diff
        self._gate = PausableGate()
        self._committed = False
        self._blocks = diff.header.size // diff.header.block_size
        self.block_size = diff.header.block_size
        self.rotational = base.rotational or diff.device.rotational
        self.multi_conn = False  # what is written is noted in the memory of this one
        self.read_only = diff.device.read_only

    @classmethod
    def diff_size(cls, base: BlockDevice, *, size: int | None = None) -> int:
        """How many bytes a device needs to be the diff of an overlay over ``base``.

        Args:
            base: what lies below.
            size: bytes of the overlay, by default as many as the base has.

        """
        check_inner(base, "base")
        return DiffHeader.over(base, block_size=base.block_size, size=size).end

    @classmethod
    async def create(
        cls,
        base: BlockDevice,
        diff: BlockDevice,
        *,
        size: int | None = None,
        identity: Identity | None = None,
    ) -> Self:
        """Make a diff of a device, durably, and lay it over ``base``.

        Args:
            base: what lies below.
            diff: a device of :meth:`diff_size` bytes. Its first page (4096 bytes, or a block if
                that is larger) must be zeroes, what else it has is of no account.
            size: bytes of the overlay, by default as many as the base has. What is beyond the base
                reads as zeroes, also when the base grows.
            identity: what the base is, to have :meth:`open` refuse another one: its name, its hash.
                At most 468 bytes of UTF-8. Or a function that finds out, such as one that hashes
                the base, given how many bytes of it show.

        Raises:
            FileExistsError: the first page is not zeroes. Nothing was changed.
            ValueError: the sizes do not fit, or the diff is read-only. Nothing was changed.
            OSError: the diff cannot be read or written.

        Cancellation: safe; the device can be used for another attempt. If it raises, base and diff
        are still the caller's.

        """
        check_inner(base, "base")
        check_inner(diff, "diff")
        block_size = max(base.block_size, diff.block_size)
        if callable(identity):
            identity = await identity(base.size if size is None else min(size, base.size))
        header = DiffHeader.over(base, block_size=block_size, size=size, identity=identity)
        header.check_base(base)
        return cls(base, await Diff.create(diff, header))

    @classmethod
    async def open(
        cls, base: BlockDevice, diff: BlockDevice, *, identity: Identity | None = None
    ) -> Self:
        """Lay a diff over the base that it was made for. Reads the map: 2.5 MiB for 10 GiB.

        Args:
            base: what lies below. It may be longer than it was; the rest is not shown.
            diff: what :meth:`create` was given. If it is read-only, the overlay is.
            identity: what the base is. None does not compare it. A function is called if the diff
                says over which base it was made; if another one is found, and the diff is empty,
                it is made one of that base.

        Raises:
            ValueError: ``diff`` is no diff, has another format, or is cut off; or the base is
                another one, or has shrunk. Nothing was changed.
            OSError: the diff is damaged (EIO), or cannot be read.

        Cancellation: safe. If it raises, base and diff are still the caller's.

        """
        check_inner(base, "base")
        opened = await Diff.open(check_inner(diff, "diff"))
        known = opened.header.identity
        opened.header.check_base(base)
        if callable(identity):
            await _check_contents(opened, identity)
        elif identity is not None and identity != known:
            raise ValueError(
                f"the diff was made over {known!r}, not over {identity!r}"
                if known
                else f"the diff does not say over which base it was made; was it {identity!r}?"
            )
        return cls(base, opened)

    @classmethod
    async def file(
        cls,
        base: BlockDevice,
        path: str | os.PathLike[str],
        *,
        size: int | None = None,
        identity: Identity | None = None,
    ) -> Self:
        """Open the overlay whose diff is in a file; make it, sparse, if there is none.

        An empty file, and one that is a hole all over, is taken for none.

        Args:
            base: what lies below.
            path: of the file.
            size: bytes of the overlay, as for :meth:`create`. A file that is there must have been
                made with the same.
            identity: as for :meth:`create` and :meth:`open`.

        Raises:
            BlockingIOError: another process has locked the file.
            ValueError, OSError: as for :meth:`create` and :meth:`open`.

        """
        needed = cls.diff_size(base, size=size)
        diff, is_new = await open_file(path, needed, base.block_size)
        try:
            if is_new:
                return await cls.create(base, diff, size=size, identity=identity)
            overlay = await cls.open(base, diff, identity=identity)
            if size not in (None, overlay.size):
                raise ValueError(f"it is of an overlay of {overlay.size} bytes")
        except ValueError as exc:
            await diff.unmount()
            raise ValueError(f"{diff.path}: {exc}") from None
        except BaseException:
            await diff.unmount()
            raise
        return overlay

    @property
    def blocks(self) -> int:
        """As many as the diff was made for; fewer may be set."""
        return self._blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        if value * self.block_size > self._diff.header.size:
            raise ValueError("an overlay does not grow; its size is given when it is made")
        self._blocks = value

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read from where the blocks are; what is in one place is passed on as it is."""
        end = offset + length
        state, stop = self._diff.run(offset, end)
        if stop == end:
            return await self._part(state, offset, end)
        # All are begun at once, while the map is as it is.
        parts = [self._part(*run) for run in self._diff.runs(offset, end)]
        return b"".join(await gather_all(parts))

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to the diff."""
        async with self._gate:
            await self._diff.write(offset, data)

    async def flush(self) -> None:
        """Make durable what was written. Those who wait for each other share one."""
        await self._diff.flush()

    async def trim(self, offset: int, length: int) -> None:
        """Make zeroes of these blocks, and give back their space in the diff."""
        async with self._gate:
            await self._diff.trim(offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Make zeroes of these blocks; ``may_trim`` false has the diff allocate them."""
        async with self._gate:
            if may_trim:
                await self._diff.zero(offset, length)
            else:
                await self._diff.allocate(offset, length)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Tell what the base tells where it shows, and which other blocks are zeroes."""
        found: list[Extent] = []
        for state, begin, end in self._diff.runs(offset, offset + length):
            if state == BASE:
                position = begin
                for extent in await self.inner.extents(begin, end - begin):
                    found.append(extent._replace(length=min(extent.length, end - position)))
                    position += extent.length
                    if position >= end:
                        break
                if position < end:
                    break
            else:
                found.append(Extent(end - begin, state == ZERO, state == ZERO))
            if len(found) >= _MAX_EXTENTS:
                break
        return found

    async def cache(self, offset: int, length: int) -> None:
        """Pass the hint on to the base, as far as it shows."""
        runs = list(self._diff.runs(offset, offset + length))
        await gather_all(
            self.inner.cache(begin, end - begin) for state, begin, end in runs if state == BASE
        )

    async def commit(self) -> None:
        """Write what differs into the base, after which the diff is empty.

        Nobody else may use the base, and all other diffs over it are worthless afterwards. The
        space in the diff is given back when the overlay is unmounted: readers may hold views of it.

        Raises:
            ValueError: the base is read-only, or smaller than the overlay (grow it first); or the
                overlay is read-only. Nothing was changed.
            OSError: what base or diff raise.

        Concurrency: works while the disk is in use. Reads go on; writes, trims and zeroes wait
        until it is done, which takes as long as copying does.

        Durability: the base has the contents when it returns. Until then the diff has everything:
        the overlay is the same after a crash, an error or a cancellation at any time, and commit()
        can be repeated. The base alone is neither old nor new then.

        """
        async with self._gate.pause():
            await commit(self._diff, self.inner)
            self._committed = True

    async def rebase(
        self, base: BlockDevice, *, identity: str | None = None, compare: bool = True
    ) -> BlockDevice:
        """Lay the diff over another base.

        Args:
            base: the new base, which belongs to the overlay when this returns.
            identity: what it is; None forgets what the old one was.
            compare: read both bases, and keep in the diff what differs, so that the overlay stays
                as it is. False only puts the new one in the place of the old: for a base that was
                moved, or has the same contents in another form.

        Returns:
            The old base. It is the caller's again, who may unmount it when the requests that began
            before are done.

        Raises:
            ValueError: the new base does not fit, or the overlay is read-only. Nothing was changed.
            OSError: what the devices raise. The overlay still lies over the old base.

        Concurrency: as for :meth:`commit`.

        Durability: what is to be kept is in the diff before the new base's identity is, which comes
            last. After a crash, an error or a cancellation the overlay is the same over the base
            that the diff was made over, according to its identity.

        """
        header = self._rebased(base, identity, compare)
        async with self._gate.pause():
            if compare:
                await preserve_differences(self._diff, self.inner, base, header.base_size)
                await self._diff.flush()
            await self._diff.rewrite(header)
            old, self.inner = self.inner, base
        return old

    async def unmount(self) -> None:
        """Flush what was not, and let go of the diff, then of the base."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(super().unmount)
            stack.push_async_callback(self._diff.device.unmount)
            if not self._diff.is_clean:
                await self._diff.flush()
            if self._committed:
                await self._diff.release()

    def _part(
        self, state: int, begin: int, end: int
    ) -> Coroutine[Any, Any, bytes | bytearray | memoryview]:
        """What reads blocks that are alike. Not async: the base may be another one later."""
        if state == DATA:
            return self._diff.read(begin, end - begin)
        if state == BASE:
            return self.inner.read(begin, end - begin)
        return _zeroes(end - begin)

    def _rebased(self, base: BlockDevice, identity: str | None, compare: bool) -> DiffHeader:
        if self.read_only:
            raise ValueError("the overlay is read-only, since its diff is")
        old = self._diff.header
        new = DiffHeader.over(base, block_size=old.block_size, size=old.size, identity=identity)
        if not compare:
            new = replace(new, base_size=old.base_size)
        new.check_base(base)
        return new


async def _check_contents(diff: Diff, identity: Callable[[int], Awaitable[str]]) -> None:
    known = diff.header.identity
    if not known or (found := await identity(diff.header.base_size)) == known:
        return
    if not diff.is_empty or diff.device.read_only:
        raise ValueError(
            "the base holds something else than when the diff was made: it was changed, or is"
            f" another one ({known!r} then, {found!r} now)"
        )
    await diff.rewrite(replace(diff.header, identity=found))


async def _zeroes(length: int) -> bytes | memoryview:
    return _ZEROES[:length] if length <= len(_ZEROES) else bytes(length)
