"""Move the spans of a plan from a source to a target, with many requests in flight."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial

from ...aio.gather import gather_all, run_bounded
from ...device import BlockDevice
from ..copying import MAX_RUN, PIECE, copy_piece
from ..overlay.committing import differences
from ..ranges import round_up, split_range
from .errors import BackupError
from .spans import How, Span

NOTE_BYTES = 256 << 20
"""Bytes after which the target is flushed, and the progress noted: what a crash costs at most."""

Advance = Callable[[int], object]
"""Called with what was done since the last call."""
Progressed = Callable[[int, int], object]
"""Called with the number of bytes done, and that of all there are to do."""
Note = Callable[[int], Awaitable[object]]


async def move(
    source: BlockDevice,
    target: BlockDevice,
    spans: Sequence[Span],
    *,
    block: int,
    requests: int,
    advance: Advance,
    note: Note | None = None,
) -> None:
    """Copy spans in ascending order, and flush the target.

    Args:
        source: the device to read.
        target: the device to write.
        spans: ascending.
        block: bytes, a multiple of the block sizes of both.
        requests: pieces in flight.
        advance: called with the number of bytes done since the last call.
        note: called from time to time, after a flush, with the offset up to which all is done.

    Raises:
        OSError: the first error of a handler.

    """

    async def piece(offset: int, length: int, how: How) -> None:
        if how is How.ZERO:
            await target.write_zeroes(offset, length, may_trim=True)
        elif how is How.COMPARE:
            await _copy_differences(source, target, offset, length, block)
        else:
            await copy_piece(source, target, offset, length)
        advance(length)

    for batch in _batches(_pieces(spans)):
        await run_bounded((partial(piece, *each) for each in batch), limit=requests)
        await target.flush()
        if note is not None:
            last = batch[-1]
            await note(last[0] + last[1])
    if not spans:  # a new size, too, is durable only once it is flushed
        await target.flush()


Piece = tuple[int, int, How]
"""Offset and length of a part of a span."""


def _pieces(spans: Iterable[Span]) -> Iterator[Piece]:
    for begin, end, how in spans:
        limit = MAX_RUN if how is How.ZERO else PIECE
        # At multiples of the limit: so a chunk of a disk in an object store is read as a whole.
        first = min(round_up(begin + 1, limit), end)
        for offset, length in ((begin, first - begin), *split_range(first, end, limit)):
            yield offset, length, how


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Join pieces to batches between which the progress is noted."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += 0 if piece[2] is How.ZERO else piece[1]
        if size >= NOTE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _copy_differences(
    source: BlockDevice, target: BlockDevice, offset: int, length: int, block: int
) -> None:
    wanted, present = await gather_all([source.read(offset, length), target.read(offset, length)])
    for begin, end, is_zero in differences(bytes(wanted), bytes(present), block):
        if is_zero:
            await target.write_zeroes(offset + begin, end - begin, may_trim=True)
        else:
            await target.write(offset + begin, memoryview(wanted)[begin:end])


def common_block(source: BlockDevice, target: BlockDevice) -> int:
    """Return the larger block size of two devices.

    Raises:
        BackupError: the size of the source is no multiple of it.

    """
    block: int = max(source.block_size, target.block_size)
    if source.size % block:
        raise BackupError(
            f"the target has blocks of {block} bytes, and {source.size} are no multiple of that"
        )
    return block


def counting(spans: Iterable[Span], progressed: Progressed) -> Callable[[int], None]:
    """Return what is called with the bytes done since its last call, and reports all of them."""
    total, done = sum(end - begin for begin, end, _ in spans), 0

    def count(length: int) -> None:
        nonlocal done
        done += length
        progressed(done, total)

    progressed(0, total)
    return count


def unseen(done: int, total: int) -> None:
    """Show no progress."""
