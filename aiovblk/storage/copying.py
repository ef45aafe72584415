"""Copy the contents of one device to another, with many requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from itertools import groupby

from ..arguments import check_count
from ..contract import check_extents
from ..device import BlockDevice
from .ranges import split_range

PIECE = 1024 * 1024
"""Bytes of one request: a quarter of it takes up to twice the CPU time, more hardly saves any."""

ZERO_UNIT = 256 * 1024
"""Bytes that are looked at together for zeroes: a multiple of every block size. In smaller units,
scattered data would be written by many small requests."""

REQUESTS = 16
"""Requests in flight."""

MAX_RUN = 1 << 30
"""Bytes of zeroes to write at once; with more, the reported progress would stand still."""

_ZEROES = bytes(ZERO_UNIT)

Run = tuple[int, int, bool]
"""Offset and length in bytes, and whether these bytes are known to be zeroes."""


async def copy(
    source: BlockDevice,
    target: BlockDevice,
    *,
    requests: int = REQUESTS,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Copy all of ``source`` to the beginning of ``target``, then flush ``target``.

    Zeroes are not copied: ``target.write_zeroes()`` is called for them, which may make a hole,
    and not even that where ``target.extents()`` knows of zeroes already, as in a new file. They
    are found by ``source.extents()``, and in the data that was read.

    Args:
        source: the device to read; it must not change meanwhile.
        target: the device to write; at least as large. Its bytes beyond the end of ``source`` stay.
        requests: the number of reads and writes in flight.
        advance: called for progress, with the number of bytes done since the last call.

    Raises:
        ValueError: ``target`` is too small, or read-only; or ``source`` has an end that cannot be
            read (:attr:`.RemoteDevice.left_out`).
        OSError: the first error of a handler. What was copied before stays in ``target``.

    Cancellation: safe; ``target`` holds a part of the copy.

    """
    _check(source, target, requests)
    slots = asyncio.Semaphore(requests)
    try:
        async with asyncio.TaskGroup() as group, aclosing(_runs(source, target)) as runs:
            async for offset, length, zero in runs:
                await slots.acquire()
                part = _zero if zero else partial(copy_piece, source)
                task = group.create_task(part(target, offset, length))
                task.add_done_callback(partial(_done, slots, advance, length))
    except BaseExceptionGroup as failures:  # before 3.11.4, except* would wrap it again
        raise _first(failures) from None
    await _copy_end(source, target)
    await target.flush()


def _done(
    slots: asyncio.Semaphore,
    advance: Callable[[int], object],
    length: int,
    part: asyncio.Task[None],
) -> None:
    slots.release()
    advance(length)


def _check(source: BlockDevice, target: BlockDevice, requests: int) -> None:
    check_count("requests", requests)
    check_source(source)
    if target.size < source.size:
        raise ValueError(f"{source.size} bytes do not fit into the {target.size} of the target")
    if target.read_only:
        raise ValueError("the target is read-only")


def check_source(source: BlockDevice) -> None:
    """Refuse to copy a device whose end cannot be read: the copy would look complete.

    Raises:
        ValueError: ``source`` is the export of a server, with an end that no request can reach.

    """
    left_out: int = getattr(source, "left_out", 0)
    if left_out:
        raise ValueError(
            f"the last {left_out} of the source's {source.size + left_out} bytes cannot be read:"
            f" its server takes no requests below {source.block_size} bytes; nothing was copied"
        )


def _whole_blocks(source: BlockDevice, target: BlockDevice) -> int:
    """Return how many bytes of the source are whole blocks of both devices."""
    block: int = max(source.block_size, target.block_size)
    return source.size - source.size % block


async def _copy_end(source: BlockDevice, target: BlockDevice) -> None:
    """Copy the end of the source, a part of a target block, by read-modify-write."""
    begin = _whole_blocks(source, target)
    length = source.size - begin
    if length:
        block = bytearray(await target.read(begin, target.block_size))
        block[:length] = await source.read(begin, length)
        await target.write(begin, memoryview(block))


async def _runs(source: BlockDevice, target: BlockDevice) -> AsyncGenerator[Run, None]:
    """Yield the pieces of the source, and whether each is known to be zeroes."""
    block: int = max(source.block_size, target.block_size)
    async with aclosing(_known(source, 0, _whole_blocks(source, target), block)) as known:
        async for offset, length, zero in known:
            for piece in split_range(offset, offset + length, MAX_RUN if zero else PIECE):
                yield *piece, zero


async def _known(
    device: BlockDevice, begin: int, end: int, block: int
) -> AsyncGenerator[Run, None]:
    """Yield runs of whole blocks of a device, and whether each is known to be zeroes."""
    mask = block - 1
    position = begin  # of what has not been asked for; `begin` is that of what has not been yielded
    while position < end:
        for length, _, zero in check_extents(await device.extents(position, end - position)):
            stop = min(position + length, end)
            # A block that is zero only in part is data.
            first = min((position + mask) & ~mask, end)
            last = stop & ~mask
            if begin < (until := first if zero else last):
                yield begin, until - begin, False
                begin = until
            if zero and begin < last:
                yield begin, last - begin, True
                begin = last
            position = stop


async def copy_piece(source: BlockDevice, target: BlockDevice, offset: int, length: int) -> None:
    """Copy a range of at most a few MiB; zeroes in it are not copied, see :func:`copy`."""
    data = memoryview(await source.read(offset, length)).cast("B")
    units = range(0, length, ZERO_UNIT)
    for zero, run in groupby(units, lambda at: _is_zero(data[at : at + ZERO_UNIT])):
        first, *others = run
        end = min((others or [first])[-1] + ZERO_UNIT, length)
        if zero:
            await _zero(target, offset + first, end - first)
        else:
            await target.write(offset + first, data[first:end])


def _is_zero(unit: memoryview) -> bool:
    # bytes are compared by one memcmp(), views in a loop. The first byte rules out most data.
    return not unit[0] and bytes(unit) == _ZEROES[: len(unit)]


async def _zero(target: BlockDevice, offset: int, length: int) -> None:
    """Make whole blocks zero, but not those that are: a server may allocate what it is to zero."""
    async with aclosing(_known(target, offset, offset + length, target.block_size)) as known:
        async for begin, count, zero in known:
            if not zero:
                await target.write_zeroes(begin, count, may_trim=True)


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
