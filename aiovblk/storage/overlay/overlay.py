"""The overlay layer: copy-on-write over a base, with a diff that is durable and crash-safe."""

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
from ..extents import MAX_EXTENTS
from ..layer import Layer
from .blockmap import BASE, DATA, ZERO
from .committing import commit, preserve_differences, rebased_header
from .diff import Diff
from .files import open_file
from .format import DiffHeader

Identity = str | Callable[[int], Awaitable[str]]
"""Identifies a base; or a function that computes this, given how many bytes show through."""

_ZEROES = memoryview(bytes(1 << 20))


class Overlay(Layer):
    """A disk that reads as ``base``, and stores what is written in a ``diff`` (copy-on-write).

    The base is only read. Any number of overlays can share it at the same time, each with a diff of
    its own, as long as the base does not change; see :class:`~aiovblk.storage.Shared` for several
    in one process. The diff is a device too, usually a sparse file. It takes space only for what
    was written, and gives back what is trimmed.

    Made by :meth:`create`, :meth:`open` or :meth:`file`. These are async, since the geometry of the
    disk is in the diff: the diff is read, and checked, before the disk can be mounted.

    The block size is that of the base or the diff, whichever is larger; so no write copies anything
    from the base. Trimmed blocks read as zeroes.

    Concurrency: any number of requests; those that overlap are as concurrent as on the diff.

    Durability: :meth:`flush` makes durable what was written. It costs one more write to the diff,
    and one more flush of it, if blocks were written or trimmed for the first time. After a crash at
    any time, each flushed write is there, and each block that was written since the last flush has
    its old contents or the new ones, if the diff's device guarantees that.

    Cancellation: of a request, as on the base and the diff. A flush that has begun is finished.

    Args:
        base: the device below; the overlay owns it and the diff from now on.
        diff: the result of :meth:`create` or :meth:`open`.

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
        self.multi_conn = False  # the map is in the memory of this process only
        self.read_only = diff.device.read_only

    @classmethod
    def diff_size(cls, base: BlockDevice, *, size: int | None = None) -> int:
        """Return the bytes that a device needs to be the diff of an overlay over ``base``.

        Args:
            base: the device below.
            size: bytes of the overlay, by default those of the base.

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
        """Make a new diff on a device, durably, and an overlay of it and ``base``.

        Args:
            base: the device below.
            diff: a device of :meth:`diff_size` bytes. Its first page (4096 bytes, or a block if
                that is larger) must be zeroes; the rest may be anything.
            size: bytes of the overlay, by default those of the base. What is beyond the base reads
                as zeroes, even if the base grows later.
            identity: identifies the base, so that :meth:`open` refuses another one: its name, its
                hash. At most 468 bytes of UTF-8. Or a function that computes it, for instance by
                hashing the base, given how many bytes of the base show through.

        Raises:
            FileExistsError: the first page is not zeroes. Nothing was changed.
            ValueError: the sizes do not fit, or the diff is read-only. Nothing was changed.
            OSError: the diff cannot be read or written.

        Cancellation: safe; another attempt can use the device. If this raises, the caller still
        owns base and diff.

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
        """Open the overlay of a diff and its base. Reads the map: at most 2.5 MiB for 10 GiB.

        Args:
            base: the device below. It may have grown; the rest does not show through.
            diff: the device that :meth:`create` was given. If it is read-only, so is the overlay.
            identity: compared with that of the diff, unless None. A function is called only if the
                diff has an identity; if the two differ and the diff is empty, the diff becomes one
                of this base.

        Raises:
            ValueError: ``diff`` is no diff, has another format, or is truncated; or the base is
                another one, or has shrunk. Nothing was changed.
            OSError: the diff is damaged (EIO), or cannot be read.

        Cancellation: safe. If this raises, the caller still owns base and diff.

        """
        check_inner(base, "base")
        opened = await Diff.open(check_inner(diff, "diff"))
        opened.header.check_base(base)
        if callable(identity):
            await _check_contents(opened, identity)
        elif identity is not None:
            _check_identity(opened.header.identity, identity)
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
        """Open the overlay whose diff is in a file; create a sparse file if it does not exist.

        A file that is empty, or all of it a hole, counts as missing.

        Args:
            base: the device below.
            path: of the file.
            size: bytes of the overlay, as for :meth:`create`. An existing file must have been made
                with the same size.
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
                raise ValueError(f"it is of an overlay of {overlay.size} bytes, not {size}")
        except ValueError as exc:
            await diff.unmount()
            raise ValueError(f"{diff.path}: {exc}") from None
        except BaseException:
            await diff.unmount()
            raise
        return overlay

    @property
    def blocks(self) -> int:
        """The number of blocks that the diff was made for, or fewer if that was set."""
        return self._blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        if value * self.block_size > self._diff.header.size:
            raise ValueError(
                f"an overlay does not grow beyond the {self._diff.header.size} bytes"
                " that it was created with"
            )
        self._blocks = value

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read from base and diff; a read from one of them only is passed on without a copy."""
        end = offset + length
        state, stop = self._diff.run(offset, end)
        if stop == end:
            return await _read_run(self.inner, self._diff, state, offset, end)
        # All handlers are called before the first is awaited, so by one version of the map.
        runs = self._diff.runs(offset, end)
        parts = [_read_run(self.inner, self._diff, *run) for run in runs]
        return b"".join(await gather_all(parts))

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to the diff."""
        async with self._gate:
            await self._diff.write(offset, data)

    async def flush(self) -> None:
        """Make durable what was written. Concurrent flushes are coalesced into one."""
        await self._diff.flush()

    async def trim(self, offset: int, length: int) -> None:
        """Make these blocks zeroes, and give back their space in the diff."""
        async with self._gate:
            await self._diff.trim(offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Make these blocks zeroes; with ``may_trim`` false, allocate their space in the diff."""
        async with self._gate:
            if may_trim:
                await self._diff.zero(offset, length)
            else:
                await self._diff.allocate(offset, length)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return the extents of the base where it shows through, and of the diff elsewhere."""
        return await _extents(self.inner, self._diff, offset, offset + length)

    def changed(self) -> list[tuple[int, int]]:
        """Return the ranges that the diff hides of the base: begin and end in bytes, ascending."""
        runs = self._diff.runs(0, min(self._diff.header.size, self._diff.header.base_size))
        return [(begin, end) for state, begin, end in runs if state != BASE]

    async def cache(self, offset: int, length: int) -> None:
        """Forward the hint to the base, where it shows through."""
        runs = list(self._diff.runs(offset, offset + length))
        await gather_all(
            self.inner.cache(begin, end - begin) for state, begin, end in runs if state == BASE
        )

    async def commit(self) -> None:
        """Write the contents of the diff into the base, after which the diff is empty.

        The base must not be used by others, and all other diffs over it are invalid afterwards. The
        space in the diff is given back by :meth:`unmount`: until then readers may hold views of it.

        Raises:
            ValueError: the base is read-only, or smaller than the overlay (grow it first); or the
                overlay is read-only. Nothing was changed.
            OSError: an error of base or diff.

        Concurrency: works while the disk is in use. Reads go on. Writes, trims and zeroes wait
        until the whole copy is done.

        Durability: the base holds the contents durably when this returns. Until then the diff does:
        after a crash, an error or a cancellation the overlay reads as before, and commit() can be
        repeated. The base alone is then a mixture of old and new.

        """
        async with self._gate.pause():
            await commit(self._diff, self.inner)
            self._committed = True

    async def rebase(
        self, base: BlockDevice, *, identity: str | None = None, compare: bool = True
    ) -> BlockDevice:
        """Replace the base by another one.

        Args:
            base: the new base, which the overlay owns when this returns.
            identity: of the new base; None removes that of the old one.
            compare: read both bases, and write what differs into the diff, so that the overlay
                reads as before. False only replaces the base: for one that was moved, or has the
                same contents in another form.

        Returns:
            The old base. The caller owns it again, and may unmount it when the requests that began
            before are done.

        Raises:
            ValueError: the new base does not fit, or the overlay is read-only. Nothing was changed.
            OSError: an error of the devices. The overlay still has the old base.

        Concurrency: as for :meth:`commit`.

        Durability: the differences are durable in the diff before the identity of the new base is.
            After a crash, an error or a cancellation the overlay reads as before over the base that
            the identity in the diff names.

        """
        if self.read_only:
            raise ValueError("the overlay is read-only, since its diff is")
        header = rebased_header(self._diff.header, base, identity, keep_base_size=not compare)
        async with self._gate.pause():
            if compare:
                await preserve_differences(self._diff, self.inner, base, header.base_size)
                await self._diff.flush()
            await self._diff.rewrite(header)
            old, self.inner = self.inner, base
        return old

    async def unmount(self) -> None:
        """Flush what was not flushed, then unmount the diff and the base."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(super().unmount)
            stack.push_async_callback(self._diff.device.unmount)
            if not self._diff.is_clean:
                await self._diff.flush()
            if self._committed:
                await self._diff.release()


def _read_run(
    base: BlockDevice, diff: Diff, state: int, begin: int, end: int
) -> Coroutine[Any, Any, bytes | bytearray | memoryview]:
    """Return the coroutine that reads a run from where it is now.

    Not async itself: a rebase may replace the base, and a write the state, before it runs.
    """
    if state == DATA:
        return diff.read(begin, end - begin)
    if state == BASE:
        return base.read(begin, end - begin)
    return _zeroes(end - begin)


async def _extents(base: BlockDevice, diff: Diff, offset: int, stop: int) -> list[Extent]:
    """Join the extents of the base, where it shows through, with the runs of the diff."""
    found: list[Extent] = []
    for state, begin, end in diff.runs(offset, stop):
        if state == BASE:
            position = begin
            for extent in await base.extents(begin, end - begin):
                found.append(extent._replace(length=min(extent.length, end - position)))
                position += extent.length
                if position >= end:
                    break
            if position < end:
                break  # the base answered for a part only
        else:
            found.append(Extent(end - begin, state == ZERO, state == ZERO))
        if len(found) >= MAX_EXTENTS:
            break
    return found


def _check_identity(known: str, given: str) -> None:
    """Refuse to open a diff over another base than the one that it was made for."""
    if given != known:
        raise ValueError(
            f"the diff was made over {known!r}, not over {given!r}"
            if known
            else f"the diff does not say over which base it was made; was it {given!r}?"
        )


async def _check_contents(diff: Diff, identity: Callable[[int], Awaitable[str]]) -> None:
    """Refuse a base whose contents have changed, unless the diff is empty: then update the diff."""
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
