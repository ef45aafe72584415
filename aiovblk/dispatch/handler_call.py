"""One request to one handler, and its result to what the reply says."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from operator import index

from ..device import BlockDevice, overrides
from ..protocol import (
    BlockStatus,
    Command,
    CommandFlag,
    NegotiationResult,
    Payload,
    ReplyContent,
    ReplyMode,
    Request,
    SparseData,
    StatusFlag,
)
from ..stream.buffers import ReplyCopyBuffer
from .failures import HandlerTimeoutError

MIN_HOLE_SIZE = 32 * 1024
"""Bytes of zeroes that are worth a piece of their own in the reply to a READ."""

MAX_EXTENTS = 1 << 16
"""Extents of one BLOCK_STATUS reply; a client asks again for what follows them."""

# Plain ints: an IntEnum's comparison costs as much as the rest of a check.
_READ, _WRITE, _FLUSH = int(Command.READ), int(Command.WRITE), int(Command.FLUSH)
_TRIM, _WRITE_ZEROES = int(Command.TRIM), int(Command.WRITE_ZEROES)
_CACHE, _BLOCK_STATUS = int(Command.CACHE), int(Command.BLOCK_STATUS)
_FUA, _NO_HOLE = int(CommandFlag.FUA), int(CommandFlag.NO_HOLE)
_DF, _REQ_ONE = int(CommandFlag.DF), int(CommandFlag.REQ_ONE)
_HOLE, _ZERO = int(StatusFlag.HOLE), int(StatusFlag.ZERO)

Handler = Callable[[Request, memoryview | None], Awaitable[ReplyContent]]


class HandlerAdapter:
    """The calls of one device's handlers, as one connection's agreement wants them.

    Args:
        device: whose handlers are called.
        agreement: what the reply may look like.
        timeout: seconds that one call may take; None for no limit.

    Attributes:
        handle: takes a request that :class:`RequestValidator` let pass, and its payload; returns the content
            of the reply, or raises what the handler raises.

    """

    def __init__(
        self, device: BlockDevice, agreement: NegotiationResult, timeout: float | None
    ) -> None:
        self._device = device
        self._timeout = timeout
        self._copy_buffer = ReplyCopyBuffer()
        self._allocation = agreement.allocation_context_id
        self._sends_holes = agreement.mode >= ReplyMode.STRUCTURED and overrides(
            device, BlockDevice.extents
        )
        self.handle: Handler = self._call if timeout is None else self._call_in_time

    async def _call(self, request: Request, payload: memoryview | None) -> ReplyContent:
        device, command = self._device, request.type
        offset, length = request.offset, request.length
        if command == _READ:
            if self._sends_holes and length > MIN_HOLE_SIZE and not request.flags & _DF:
                return await self._read_around_holes(offset, length)
            data = await device.read(offset, length)
            if type(data) is bytes and len(data) == length:  # by far the most
                return data
            return self._payload(data, length)
        if command == _WRITE:
            assert payload is not None  # each WRITE was given one when it was parsed
            await device.write(offset, payload)
        elif command == _TRIM:
            await device.trim(offset, length)
        elif command == _WRITE_ZEROES:
            await device.write_zeroes(offset, length, may_trim=not request.flags & _NO_HOLE)
        elif command == _BLOCK_STATUS:
            return await self._block_status(request)
        elif command == _CACHE:
            await device.cache(offset, length)
        if command == _FLUSH or (request.flags & _FUA and command != _CACHE):
            # "FUA: the server MUST NOT send a reply until the data has reached stable storage."
            await device.flush()
        return b""

    async def _call_in_time(self, request: Request, payload: memoryview | None) -> ReplyContent:
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return await self._call(request, payload)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            reason = f"not done in {self._timeout} s (handler_timeout)"
            raise HandlerTimeoutError(errno.ETIMEDOUT, reason) from exc

    async def _block_status(self, request: Request) -> BlockStatus:
        extents = await self._extents(request.offset, request.length)
        assert self._allocation is not None  # or the request would have been refused
        # "REQ_ONE: the server MUST return exactly one extent per metadata context."
        return BlockStatus(self._allocation, extents[: 1 if request.flags & _REQ_ONE else None])

    async def _extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Length and state of what lies there, neighbours never alike, none beyond the end."""
        extents: list[tuple[int, int]] = []
        left = length
        for size, hole, zero in await self._device.extents(offset, length):
            size = index(size)  # a float could not be packed, and nobody would answer then
            if size < 1:
                raise ValueError(f"extents returned one of {size} bytes")
            state = (_HOLE if hole else 0) | (_ZERO if zero else 0)
            size = min(size, left)
            left -= size
            if extents and extents[-1][1] == state:
                extents[-1] = extents[-1][0] + size, state
            elif len(extents) == MAX_EXTENTS:
                break
            else:
                extents.append((size, state))
            if not left:
                break
        if not extents:
            raise ValueError("extents returned none")
        return extents

    async def _read_around_holes(self, offset: int, length: int) -> ReplyContent:
        extents = await self._extents(offset, length)
        if len(extents) == 1 and not extents[0][1] & _ZERO:
            return await self._read(offset, length)
        mask = self._device.block_size - 1
        pieces: list[Payload | int] = []
        begin = position = offset
        for size, state in extents:
            hole, position = (position + mask) & ~mask, position + size
            hole_end = position & ~mask
            if state & _ZERO and hole_end - hole >= MIN_HOLE_SIZE:
                if begin < hole:
                    pieces.append(await self._read(begin, hole - begin))
                pieces.append(hole_end - hole)
                begin = hole_end
        if not pieces:
            return await self._read(offset, length)
        if begin < offset + length:
            pieces.append(await self._read(begin, offset + length - begin))
        return SparseData(pieces)

    async def _read(self, offset: int, length: int) -> Payload:
        return self._payload(await self._device.read(offset, length), length)

    def _payload(self, data: bytes | bytearray | memoryview, length: int) -> Payload:
        """A READ's result in a form that stays as it is while it waits to be sent."""
        if type(data) is not bytes:
            view = _view_of(data)
            data = view if view.readonly else self._copy_buffer.copy(view)
        if len(data) != length:
            raise ValueError(f"read returned {len(data)} bytes where {length} were asked for")
        return data


def _view_of(data: object) -> memoryview:
    try:
        return memoryview(data).cast("B")  # type: ignore[arg-type]
    except TypeError:
        shown = "None" if data is None else f"a {type(data).__name__}"
        raise TypeError(f"read returned {shown} where bytes were asked for") from None
