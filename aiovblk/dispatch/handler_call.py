"""Call the handler of one request, and turn its result into the reply's content."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ..device import BlockDevice, can, handler_for
from ..protocol import (
    MAX_PAYLOAD,
    Command,
    CommandFlag,
    NegotiationResult,
    Payload,
    ReplyContent,
    ReplyMode,
    Request,
)
from ..stream.reply_copies import ReplyCopyBuffer
from .block_status import BlockStatusAdapter
from .handler_timeout import with_timeout
from .holes import MIN_HOLE_SIZE, merge_extents, read_around_holes

# Plain ints: an IntEnum's comparison costs as much as the rest of a check.
_READ, _WRITE, _FLUSH = int(Command.READ), int(Command.WRITE), int(Command.FLUSH)
_TRIM, _WRITE_ZEROES = int(Command.TRIM), int(Command.WRITE_ZEROES)
_CACHE, _BLOCK_STATUS = int(Command.CACHE), int(Command.BLOCK_STATUS)
_FUA, _NO_HOLE, _DF = int(CommandFlag.FUA), int(CommandFlag.NO_HOLE), int(CommandFlag.DF)

Buffer = bytes | bytearray | memoryview


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
        read, write: the device's handlers, for a READ or WRITE without flags that is served
            without :attr:`handle`.
        max_read: bytes of the largest READ that may be served by :attr:`read`.

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
        self._copy_buffer = ReplyCopyBuffer()
        self._block_status = BlockStatusAdapter(device, negotiated, self._extents).handle
        self._sends_holes = negotiated.mode >= ReplyMode.STRUCTURED and can(device, "extents")
        self.max_read = MIN_HOLE_SIZE if self._sends_holes else MAX_PAYLOAD
        self.handle = with_timeout(self._call, timeout)
        self.read: Callable[[int, int], Awaitable[Any]] = with_timeout(device.read, timeout)
        self.write: Callable[[int, memoryview], Awaitable[None]] = with_timeout(
            self._write, timeout
        )

    async def _call(self, request: Request, payload: memoryview | None) -> ReplyContent:
        command, offset, length = request.type, request.offset, request.length
        if command == _READ:
            if self._sends_holes and length > MIN_HOLE_SIZE and not request.flags & _DF:
                return await read_around_holes(
                    self._read,
                    merge_extents(await self._extents(offset, length), length),
                    offset,
                    length,
                    self._device.block_size,
                )
            return await self._read(offset, length)
        if command == _WRITE:
            assert payload is not None  # the receiver attaches one to each WRITE
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

    async def _read(self, offset: int, length: int) -> Payload:
        return self.checked(await self._device.read(offset, length), length)

    def checked(self, data: Buffer, length: int) -> Payload:
        """Check the result of a READ; copy it if it might change before it is sent.

        Raises:
            TypeError, ValueError: it is not bytes-like, or not ``length`` bytes.

        """
        if type(data) is not bytes:
            view = view_of(data)
            data = view if view.readonly else self._copy_buffer.copy(view)
        if len(data) != length:
            raise ValueError(f"read returned {len(data)} bytes where {length} were asked for")
        return data


def view_of(data: object) -> memoryview:
    """Return a flat view of bytes of any contiguous bytes-like object."""
    try:
        return memoryview(data).cast("B")  # type: ignore[arg-type]
    except TypeError:
        shown = "None" if data is None else f"a {type(data).__name__}"
        raise TypeError(f"read returned {shown} where bytes were asked for") from None
