"""From the diff to the base, and from one base to another. Nothing else is written meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby

from ...aio.gather import gather_all, run_bounded
from ...device import BlockDevice
from ..copying import MAX_RUN, PIECE
from .blockmap import BASE, DATA, ZERO
from .diff import Diff

Requests = Iterator[Callable[[], Awaitable[object]]]


async def commit(diff: Diff, base: BlockDevice) -> None:
    """Write what differs into ``base``, and make all blocks BASE.

    The diff hides what is written until it is durable, and the map is changed after that; so this
    can end anywhere, and be done again.

    Raises:
        ValueError: the base or the diff cannot take it.

    """
    _check_commit(diff, base)
    await run_bounded(_writes(diff, base))
    await base.flush()
    if diff.header.base_size < diff.header.size:  # of which the rest is in the base now
        await diff.rewrite(replace(diff.header, base_size=diff.header.size))
    diff.clear()
    await diff.flush()


def _check_commit(diff: Diff, base: BlockDevice) -> None:
    if diff.device.read_only:
        raise ValueError("the overlay is read-only, since its diff is")
    if base.read_only:
        raise ValueError("the base is read-only, and nothing can be committed to it")
    if base.size < diff.header.size:
        raise ValueError(
            f"the base has {base.size} bytes, fewer than the overlay: grow it to"
            f" {diff.header.size} first"
        )


def _writes(diff: Diff, base: BlockDevice) -> Requests:
    for state, begin, end in diff.runs(0, diff.header.size):
        if state == DATA:
            for offset, length in _pieces(begin, end, PIECE):
                yield partial(_move, diff, base, offset, length)
        elif state == ZERO:
            for offset, length in _pieces(begin, end, MAX_RUN):
                yield partial(base.write_zeroes, offset, length, may_trim=True)


async def _move(diff: Diff, base: BlockDevice, offset: int, length: int) -> None:
    await base.write(offset, memoryview(await diff.read(offset, length)))


async def preserve_differences(
    diff: Diff, old: BlockDevice, new: BlockDevice, base_size: int
) -> None:
    """Put into the diff what differs between two bases, as it is in the old one.

    Args:
        diff: of which a block is changed only where the old base shows.
        old: the base below.
        new: the one that will be.
        base_size: bytes of the new one that will show.

    """
    if diff.header.base_size < base_size:
        await diff.hide(diff.header.base_size, base_size)
    await run_bounded(_comparisons(diff, old, new, base_size))


def _comparisons(diff: Diff, old: BlockDevice, new: BlockDevice, base_size: int) -> Requests:
    for state, begin, end in diff.runs(0, diff.header.base_size):
        if state == BASE:
            for offset, length in _pieces(begin, end, PIECE):
                yield partial(_preserve, diff, old, new, base_size, offset, length)


async def _preserve(
    diff: Diff, old: BlockDevice, new: BlockDevice, base_size: int, offset: int, length: int
) -> None:
    was, will_be = await gather_all(
        [_read(old, diff.header.base_size, offset, length), _read(new, base_size, offset, length)]
    )
    for begin, end, is_zero in _differences(was, will_be, diff.header.block_size):
        if is_zero:
            await diff.zero(offset + begin, end - begin)
        else:
            await diff.write(offset + begin, memoryview(was)[begin:end])


def _differences(was: bytes, will_be: bytes, block_size: int) -> Iterator[tuple[int, int, bool]]:
    """Runs of blocks that differ: begin, end, and whether they were zeroes."""

    def kind(at: int) -> tuple[bool, bool]:
        block = was[at : at + block_size]
        return block != will_be[at : at + block_size], not any(block)

    if was == will_be:
        return
    for (differs, is_zero), run in groupby(range(0, len(was), block_size), kind):
        if differs:
            starts = list(run)
            yield starts[0], starts[-1] + block_size, is_zero


async def _read(base: BlockDevice, base_size: int, offset: int, length: int) -> bytes:
    """What shows of a base, with the zeroes behind it."""
    there = max(min(length, base_size - offset), 0)
    return bytes(await base.read(offset, there)).ljust(length, b"\0") if there else bytes(length)


def _pieces(begin: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    return ((start, min(longest, end - start)) for start in range(begin, end, longest))
