"""Copy between diff and base: commit (diff to base) and rebase (to another base).

The caller pauses all other changes of the overlay meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby

from ...aio.gather import gather_all, run_bounded
from ...device import BlockDevice
from ..copying import MAX_RUN, PIECE
from ..ranges import split_range
from .blockmap import BASE, DATA, ZERO
from .diff import Diff
from .format import DiffHeader

Requests = Iterator[Callable[[], Awaitable[object]]]


async def commit(diff: Diff, base: BlockDevice) -> None:
    """Write the blocks of the diff into ``base``, then set all blocks to BASE.

    While it runs, the diff still hides the blocks of the base that are written. The map changes
    only when the base is durable. So it can be interrupted at any point, and repeated.

    Raises:
        ValueError: the base or the diff is read-only, or the base is smaller than the overlay.

    """
    _check_commit(diff, base)
    await run_bounded(_writes(diff, base))
    await base.flush()
    if diff.header.base_size < diff.header.size:  # the base now holds the rest, too
        await diff.rewrite(replace(diff.header, base_size=diff.header.size))
    diff.clear()
    await diff.flush()


def _check_commit(diff: Diff, base: BlockDevice) -> None:
    if diff.device.read_only:
        raise ValueError("the overlay is read-only, since its diff is")
    if base.read_only:
        raise ValueError("the base is read-only: commit() needs one that can be written")
    if base.size < diff.header.size:
        raise ValueError(
            f"the base has {base.size} bytes, fewer than the overlay: grow it to"
            f" {diff.header.size} first"
        )


def _writes(diff: Diff, base: BlockDevice) -> Requests:
    """Yield the requests that write the blocks of the diff into the base."""
    for state, begin, end in diff.runs(0, diff.header.size):
        if state == DATA:
            for offset, length in split_range(begin, end, PIECE):
                yield partial(_copy_piece, diff, base, offset, length)
        elif state == ZERO:
            for offset, length in split_range(begin, end, MAX_RUN):
                yield partial(base.write_zeroes, offset, length, may_trim=True)


async def _copy_piece(diff: Diff, base: BlockDevice, offset: int, length: int) -> None:
    await base.write(offset, memoryview(await diff.read(offset, length)))


async def preserve_differences(
    diff: Diff, old: BlockDevice, new: BlockDevice, base_size: int
) -> None:
    """Write into the diff the blocks in which two bases differ, as they are in the old one.

    So the overlay reads the same over the new base.

    Args:
        diff: is changed only where the old base shows through (blocks that are BASE).
        old: the present base.
        new: the future base.
        base_size: bytes of the new base that will show through.

    """
    if diff.header.base_size < base_size:
        await diff.hide(diff.header.base_size, base_size)
    await run_bounded(_comparisons(diff, old, new, base_size))


def _comparisons(diff: Diff, old: BlockDevice, new: BlockDevice, base_size: int) -> Requests:
    """Yield the requests that compare the bases where the old one shows through."""
    for state, begin, end in diff.runs(0, diff.header.base_size):
        if state == BASE:
            for offset, length in split_range(begin, end, PIECE):
                yield partial(_preserve, diff, old, new, base_size, offset, length)


async def _preserve(
    diff: Diff, old: BlockDevice, new: BlockDevice, base_size: int, offset: int, length: int
) -> None:
    before, after = await gather_all(
        [_read(old, diff.header.base_size, offset, length), _read(new, base_size, offset, length)]
    )
    for begin, end, is_zero in differences(before, after, diff.header.block_size):
        if is_zero:
            await diff.zero(offset + begin, end - begin)
        else:
            await diff.write(offset + begin, memoryview(before)[begin:end])


def differences(before: bytes, after: bytes, block_size: int) -> Iterator[tuple[int, int, bool]]:
    """Yield runs of blocks that differ: begin, end, and whether they are zeroes in ``before``."""

    def kind(at: int) -> tuple[bool, bool]:
        block = before[at : at + block_size]
        return block != after[at : at + block_size], not any(block)

    if before == after:
        return
    for (differs, is_zero), run in groupby(range(0, len(before), block_size), kind):
        if differs:
            starts = list(run)
            yield starts[0], starts[-1] + block_size, is_zero


async def _read(base: BlockDevice, base_size: int, offset: int, length: int) -> bytes:
    """Read what shows through of a base, with zeroes behind its end."""
    there = max(min(length, base_size - offset), 0)
    return bytes(await base.read(offset, there)).ljust(length, b"\0") if there else bytes(length)


def rebased_header(
    old: DiffHeader, base: BlockDevice, identity: str | None, *, keep_base_size: bool
) -> DiffHeader:
    """Make the header of a diff that is rebased.

    Args:
        old: its present header.
        base: the new base.
        identity: of the new base.
        keep_base_size: whether as much as before is to show through of the base.

    Raises:
        ValueError: the base is too small, or its blocks are too large.

    """
    header = DiffHeader.over(base, block_size=old.block_size, size=old.size, identity=identity)
    if keep_base_size:
        header = replace(header, base_size=old.base_size)
    header.check_base(base)
    return header
