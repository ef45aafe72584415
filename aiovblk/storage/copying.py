"""The contents of one device to another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial

from ..arguments import check_count
from ..contract import check_extents
from ..device import BlockDevice

PIECE = 256 * 1024
"""Bytes of one request: where throughput no longer grows much, and zeroes are still found."""

REQUESTS = 32
"""Requests in flight."""

MAX_RUN = 1 << 30
"""Bytes of zeroes to write at once; more would leave the progress standing still."""

_ZEROES = bytes(PIECE)

Run = tuple[int, int, bool]


async def copy(
    source: BlockDevice,
    target: BlockDevice,
    *,
    requests: int = REQUESTS,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Copy all of ``source`` to the beginning of ``target``, and flush that.

    What reads as zeroes is not copied: ``target`` is told to write zeroes there, and may make a
    hole. Zeroes are found by ``source.extents()``, and in what was read.

    Args:
        source: what is read; it must not change meanwhile.
        target: what is written; at least as large. What it has beyond the end of ``source`` stays.
        requests: how many reads and writes may be in flight.
        advance: called with the number of bytes that were done since it was last called.

    Raises:
        ValueError: ``target`` is too small, or read-only; or ``source`` has an end that cannot be
            read (:attr:`.RemoteDevice.left_out`).
        OSError: what the first handler raises that fails. What was copied until then stays.

    Cancellation: safe; a part has been copied.

    """
    _check(source, target, requests)
    turn = asyncio.Semaphore(requests)
    try:
        async with asyncio.TaskGroup() as group, aclosing(_runs(source, target)) as runs:
            async for offset, length, zero in runs:
                await turn.acquire()
                part = _zero if zero else partial(_move, source)
                task = group.create_task(part(target, offset, length))
                task.add_done_callback(partial(_done, turn, advance, length))
    except* Exception as failures:
        raise _first(failures) from None
    await _move_end(source, target)
    await target.flush()


def _done(
    turn: asyncio.Semaphore,
    advance: Callable[[int], object],
    length: int,
    part: asyncio.Task[None],
) -> None:
    turn.release()
    advance(length)


def _check(source: BlockDevice, target: BlockDevice, requests: int) -> None:
    check_count("requests", requests)
    check_source(source)
    if target.size < source.size:
        raise ValueError(f"{source.size} bytes do not fit into the {target.size} of the target")
    if target.read_only:
        raise ValueError("the target is read-only")


def check_source(source: BlockDevice) -> None:
    """Refuse to copy a device of which a part cannot be read: the copy would look whole.

    Raises:
        ValueError: it is the export of a server that has an end which no request can reach.

    """
    left_out: int = getattr(source, "left_out", 0)
    if left_out:
        raise ValueError(
            f"the last {left_out} of the source's {source.size + left_out} bytes cannot be read:"
            f" its server takes no requests below {source.block_size} bytes; nothing was copied"
        )


def _whole_blocks(source: BlockDevice, target: BlockDevice) -> int:
    """Bytes of the source up to where it ends within a block of the target, if it does."""
    block: int = max(source.block_size, target.block_size)
    return source.size - source.size % block


async def _move_end(source: BlockDevice, target: BlockDevice) -> None:
    """Put what is left of the source into the block of the target that holds other bytes too."""
    begin = _whole_blocks(source, target)
    length = source.size - begin
    if length:
        block = bytearray(await target.read(begin, target.block_size))
        block[:length] = await source.read(begin, length)
        await target.write(begin, memoryview(block))


async def _runs(source: BlockDevice, target: BlockDevice) -> AsyncGenerator[Run, None]:
    """Offset and length of each piece of the source, and whether it is known to be zero."""
    mask = max(source.block_size, target.block_size) - 1
    size = _whole_blocks(source, target)
    begin = position = 0  # of what has not been handed out, and of what has not been asked for
    while position < size:
        for length, _, zero in check_extents(await source.extents(position, size - position)):
            end = min(position + length, size)
            # A block that is zero only in part is data.
            first = min((position + mask) & ~mask, size)
            last = end & ~mask
            for piece in _pieces(begin, first if zero else last, PIECE):
                yield *piece, False
            begin = max(begin, first if zero else last)
            if zero:
                for piece in _pieces(begin, last, MAX_RUN):
                    yield *piece, True
                begin = max(begin, last)
            position = end


def _pieces(begin: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    return ((start, min(longest, end - start)) for start in range(begin, end, longest))


async def _move(source: BlockDevice, target: BlockDevice, offset: int, length: int) -> None:
    data = memoryview(await source.read(offset, length)).cast("B")
    # A view compares byte by byte, bytes do so at once; most data is told by its first byte.
    if not data[0] and bytes(data) == _ZEROES[:length]:
        await _zero(target, offset, length)
    else:
        await target.write(offset, data)


async def _zero(target: BlockDevice, offset: int, length: int) -> None:
    await target.write_zeroes(offset, length, may_trim=True)


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
