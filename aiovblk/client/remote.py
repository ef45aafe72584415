"""RemoteDevice: the export of a server as a block device, over the connections of a session."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from ..bitmaps import DirtyExtent, cut_extents
from ..device import BlockDevice, Extent, Operation
from ..protocol import (
    BASE_ALLOCATION,
    DIRTY_BITMAP,
    STATUS_DIRTY,
    Command,
    CommandFlag,
    ExportInfo,
    ReplyMode,
    StatusFlag,
    TransmissionFlag,
)
from .contexts import dirty_bitmaps_among
from .session import Session

SECTOR = 512
"""Default block size in bytes, unless the server's minimum is larger: that of nearly every disk."""

MAX_RANGE = 2**32 - 2**16
"""Longest range, in bytes, of a request without data where its length has 32 bits: a multiple of
each block size."""

_NEEDED_FLAGS: dict[Operation, TransmissionFlag] = {
    "flush": TransmissionFlag.SEND_FLUSH,
    "trim": TransmissionFlag.SEND_TRIM,
    "write_zeroes": TransmissionFlag.SEND_WRITE_ZEROES,
    "cache": TransmissionFlag.SEND_CACHE,
}


class RemoteDevice(BlockDevice):
    """The export of an NBD server as a device; :func:`connect` makes it.

    Its capabilities are those of the server (:func:`aiovblk.device.can`). What the server cannot
    do is as in the base class: no such request is sent. So it may be mounted, served, copied and
    wrapped as any other device.

    Reads return views of memory that does not change.

    **Concurrency.** Any number of calls at once, all in flight together.

    **Cancellation.** A request that was sent is not withdrawn: a write that is cancelled may be
    stored or not.

    **Errors.** ``OSError`` with the server's error value and message; ENOTCONN once the connection
    is lost permanently, or closed; EIO where a connection broke and it is not known what the server
    has stored.

    **Dirty bitmaps**: those of the server whose contexts were selected, as
    :class:`aiovblk.bitmaps.SupportsDirtyBitmaps` has it; any other context by :meth:`block_status`.

    **A size that is no multiple of the server's minimum block size.** What follows the last whole
    block can neither be read nor written, since the server refuses smaller requests. The device
    ends before it, so that it can be mounted and served, with :attr:`left_out` bytes less than the
    export has; a warning is logged, and :func:`~aiovblk.storage.copy` refuses to copy it.

    Attributes:
        uri: of the export, as given to :func:`connect`.
        info: the export's size, flags and block sizes, as negotiated.
        left_out: bytes at the end of the export that no request can reach.
        contexts: the names of the metadata contexts that were selected, sorted.
        offered_contexts: those that the server listed, if :func:`connect` was to ask; else None.

    """

    def __init__(self, uri: str, session: Session) -> None:
        self.uri = uri
        self.info: ExportInfo = session.negotiated.info
        self.block_size = _block_size(self.info)
        self.blocks = self.info.size // self.block_size
        self.left_out = self.info.size - self.size
        self.rotational = bool(self.info.flags & TransmissionFlag.ROTATIONAL)
        self.multi_conn = bool(self.info.flags & TransmissionFlag.CAN_MULTI_CONN)
        self.contexts = tuple(sorted(session.negotiated.contexts))
        self.offered_contexts = session.negotiated.offered_contexts
        self._session = session
        self._max_payload = _max_payload(self.info, self.block_size)
        is_extended = session.negotiated.mode is ReplyMode.EXTENDED
        self._max_range = 2**63 if is_extended else MAX_RANGE
        self._unsupported = frozenset(self._missing())

    def __repr__(self) -> str:
        """Name the export."""
        return f"<RemoteDevice {self.uri}>"

    @property
    def description(self) -> str:
        """The server's description of the export, for people; often empty."""
        return self.info.description

    @property
    def connections(self) -> int:
        """How many connections there are now; those after the first join in the background."""
        return self._session.connections

    async def read(self, offset: int, length: int) -> memoryview:
        """Read. The view keeps up to 1 MiB alive; copy it to keep it for long."""
        if 0 < length <= self._max_payload:
            view: memoryview = await self._session.request(Command.READ, offset, length)
            return view
        data = memoryview(bytearray(length))
        await _together(
            self._session.request(Command.READ, start, size, into=data[start - offset :][:size])
            for start, size in _pieces(offset, length, self._max_payload)
        )
        return data.toreadonly()

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write. Bytes, and what a server's READ returned, are sent as they are, others copied."""
        if "write" in self._unsupported:
            await super().write(offset, memoryview(data))
            return
        view = data if isinstance(data, bytes) else memoryview(data).cast("B")
        if 0 < len(view) <= self._max_payload:
            await self._session.request(Command.WRITE, offset, len(view), data=view)
            return
        view = memoryview(view)
        await _together(
            self._session.request(Command.WRITE, start, size, data=view[start - offset :][:size])
            for start, size in _pieces(offset, len(view), self._max_payload)
        )

    async def flush(self) -> None:
        """Flush. The first flush after a connection was lost fails if writes may be lost."""
        if "flush" in self._unsupported:
            await super().flush()
            return
        await self._session.flush()

    async def trim(self, offset: int, length: int) -> None:
        """Trim, by several requests where the range is long."""
        if "trim" in self._unsupported:
            await super().trim(offset, length)
            return
        for piece in _pieces(offset, length, self._max_range):
            await self._session.request(Command.TRIM, *piece)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes, by several requests where the range is long."""
        if "write_zeroes" in self._unsupported:
            await super().write_zeroes(offset, length, may_trim=may_trim)
            return
        flags = 0 if may_trim else CommandFlag.NO_HOLE
        for piece in _pieces(offset, length, self._max_range):
            await self._session.request(Command.WRITE_ZEROES, *piece, flags=flags)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Query extents; of at most 4 GiB at once unless the server has extended headers."""
        if "extents" in self._unsupported:
            return await super().extents(offset, length)
        return [
            Extent(size, bool(state & StatusFlag.HOLE), bool(state & StatusFlag.ZERO))
            for size, state in await self._status(BASE_ALLOCATION, offset, length)
        ]

    async def block_status(
        self, context: str, offset: int, length: int
    ) -> Sequence[tuple[int, int]]:
        """Query a metadata context: what it says of a range, by BLOCK_STATUS.

        Args:
            context: one of :attr:`contexts`.
            offset: bytes, a multiple of the block size.
            length: bytes; more than 4 GiB count as 4 GiB unless the server has extended headers.

        Returns:
            Length in bytes and status flags of each extent, in order from ``offset`` on, as the
            server sent them: at least one, and perhaps of less than the range, or more.

        Raises:
            KeyError: it was not selected.
            OSError: the server answered with an error; or see the class.

        """
        if context not in self.contexts:
            raise KeyError(context)
        return await self._status(context, offset, length)

    async def _status(self, context: str, offset: int, length: int) -> Sequence[tuple[int, int]]:
        span = min(length, self._max_range)
        found: dict[str, Sequence[tuple[int, int]]] = await self._session.request(
            Command.BLOCK_STATUS, offset, span, contexts=(context,)
        )
        return found[context]

    async def dirty_bitmaps(self) -> Sequence[str]:
        """Return the names of the dirty bitmaps among :attr:`contexts`, sorted."""
        return dirty_bitmaps_among(self.contexts)

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        """Query a dirty bitmap; see :meth:`aiovblk.bitmaps.SupportsDirtyBitmaps.dirty_extents`.

        Raises:
            KeyError: its context was not selected, or the server has dropped the bitmap (ENOTSUP).
            OSError: the server answered with another error; or see the class.

        """
        try:
            found = await self.block_status(DIRTY_BITMAP + name, offset, length)
        except OSError as exc:
            if exc.errno == errno.ENOTSUP:
                raise KeyError(name) from exc
            raise
        extents = [DirtyExtent(size, bool(flags & STATUS_DIRTY)) for size, flags in found]
        return cut_extents(extents, 0, length)

    async def cache(self, offset: int, length: int) -> None:
        """Ask the server to cache a range, by several requests where it is long."""
        if "cache" in self._unsupported:
            await super().cache(offset, length)
            return
        for piece in _pieces(offset, length, self._max_range):
            await self._session.request(Command.CACHE, *piece)

    async def unmount(self) -> None:
        """Close the connections, as leaving :func:`connect` does. No-op: closed already."""
        await self._session.close()

    def _missing(self) -> Iterator[Operation]:
        """Yield the operations that the server does not offer, by its flags."""
        flags = self.info.flags
        if flags & TransmissionFlag.READ_ONLY:
            yield from ("write", "trim", "write_zeroes")
        if self._session.negotiated.allocation_context_id is None:
            yield "extents"
        yield from (name for name, needed in _NEEDED_FLAGS.items() if not flags & needed)


def _block_size(info: ExportInfo) -> int:
    """Choose a block size that divides the size, so that the last block is whole."""
    lowest_bit = info.size & -info.size or SECTOR
    return max(info.minimum_block, min(lowest_bit, SECTOR))


def _max_payload(info: ExportInfo, block_size: int) -> int:
    """Return the most bytes of a READ or WRITE: whole blocks, preferred ones if one fits."""
    preferred = info.preferred_block if info.preferred_block % block_size == 0 else block_size
    units = preferred, block_size, info.minimum_block
    unit = next(unit for unit in units if unit <= info.maximum_payload)
    return info.maximum_payload // unit * unit


def _pieces(offset: int, length: int, longest: int) -> Iterator[tuple[int, int]]:
    """Split a range: offset and length of each part."""
    end = offset + length
    return ((start, min(longest, end - start)) for start in range(offset, end, longest))


async def _together(requests: Iterator[Coroutine[Any, Any, object]]) -> None:
    """Run all of them at once, wait for all, then raise the first of their errors."""
    for result in await asyncio.gather(*requests, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
