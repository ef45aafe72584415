"""Call the handler of one request, with a timeout, and turn its result into the reply's content."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from operator import index

from ..device import BlockDevice, can, handler_for
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
"""Bytes of the smallest hole in the reply to a READ; shorter runs of zeroes are sent as data."""

MAX_EXTENTS = 1 << 16
"""Most extents in one BLOCK_STATUS reply; a client requests the rest with another command."""

# Plain ints: an IntEnum's comparison costs as much as the rest of a check.
_READ, _WRITE, _FLUSH = int(Command.READ), int(Command.WRITE), int(Command.FLUSH)
_TRIM, _WRITE_ZEROES = int(Command.TRIM), int(Command.WRITE_ZEROES)
_CACHE, _BLOCK_STATUS = int(Command.CACHE), int(Command.BLOCK_STATUS)
_FUA, _NO_HOLE = int(CommandFlag.FUA), int(CommandFlag.NO_HOLE)
_DF, _REQ_ONE = int(CommandFlag.DF), int(CommandFlag.REQ_ONE)
_HOLE, _ZERO = int(StatusFlag.HOLE), int(StatusFlag.ZERO)

Handler = Callable[[Request, memoryview | None], Awaitable[ReplyContent]]


class HandlerAdapter:
    """Translate requests into handler calls of one device, on one connection.

    An operation that the device cannot do is served by the default of :class:`BlockDevice`; which
    those are is determined once, here.

    Args:
        device: the device whose handlers are called.
        negotiated: the result of the handshake: which forms of replies the client takes.
        timeout: seconds that one call may take (``handler_timeout``); None for no limit.

    Attributes:
        handle: takes a request that :class:`RequestValidator` accepted, and its payload. Returns
            the content of the reply, or raises what the handler raises.

    """

    def __init__(
        self, device: BlockDevice, negotiated: NegotiationResult, timeout: float | None
    ) -> None:
        self._device = device
        self._write = handler_for(device, "write")
        self._flush = handler_for(device, "flush")
        self._trim = handler_for(device, "trim")
        self._write_zeroes = handler_for(device, "write_zeroes")
        self._extents = handler_for(device, "extents")
        self._cache = handler_for(device, "cache")
        self._timeout = timeout
        self._copy_buffer = ReplyCopyBuffer()
        self._allocation = negotiated.allocation_context_id
        self._sends_holes = negotiated.mode >= ReplyMode.STRUCTURED and can(device, "extents")
        self.handle: Handler = self._call if timeout is None else self._call_in_time

    async def _call(self, request: Request, payload: memoryview | None) -> ReplyContent:
        device, command = self._device, request.type
        offset, length = request.offset, request.length
        if command == _READ:
            if self._sends_holes and length > MIN_HOLE_SIZE and not request.flags & _DF:
                return await self._read_around_holes(offset, length)
            data = await device.read(offset, length)
            if type(data) is bytes and len(data) == length:  # the common case
                return data
            return self._payload(data, length)
        if command == _WRITE:
            assert payload is not None  # the dispatcher attaches one to each WRITE
            await self._write(offset, payload)
        elif command == _TRIM:
            await self._trim(offset, length)
        elif command == _WRITE_ZEROES:
            await self._write_zeroes(offset, length, may_trim=not request.flags & _NO_HOLE)
        elif command == _BLOCK_STATUS:
            return await self._block_status(request)
        elif command == _CACHE:
            await self._cache(offset, length)
        if command == _FLUSH or (request.flags & _FUA and command != _CACHE):
            # "FUA: the server MUST NOT send a reply until the data has reached stable storage."
            await self._flush()
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
        extents = await self._merged_extents(request.offset, request.length)
        assert self._allocation is not None  # or the request would have been refused
        # "REQ_ONE: the server MUST return exactly one extent per metadata context."
        return BlockStatus(self._allocation, extents[: 1 if request.flags & _REQ_ONE else None])

    async def _merged_extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return (length, status flags) of each extent: equal neighbours merged, cut at the end."""
        extents: list[tuple[int, int]] = []
        left = length
        for size, hole, zero in await self._extents(offset, length):
            size = index(size)  # a float could not be packed, and no reply would be sent
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
        """Read only the data: holes of :data:`MIN_HOLE_SIZE` or more are sent as holes."""
        extents = await self._merged_extents(offset, length)
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
        """Check the length of a READ's result; copy it if it might change before it is sent."""
        if type(data) is not bytes:
            view = _view_of(data)
            data = view if view.readonly else self._copy_buffer.copy(view)
        if len(data) != length:
            raise ValueError(f"read returned {len(data)} bytes where {length} were asked for")
        return data


def _view_of(data: object) -> memoryview:
    """Return a flat view of bytes of any contiguous bytes-like object."""
    try:
        return memoryview(data).cast("B")  # type: ignore[arg-type]
    except TypeError:
        shown = "None" if data is None else f"a {type(data).__name__}"
        raise TypeError(f"read returned {shown} where bytes were asked for") from None
