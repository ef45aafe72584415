"""Drive a handshake, which does no I/O by itself, over a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic_ns
from typing import Any, TypeVar, cast

from ..protocol import ExportInfo, Handshake, ListBitmaps, OpenExport, Receive, StartTLS, Step
from .protocol import StreamProtocol
from .slices import Slice

T = TypeVar("T")

OpenExportFunction = Callable[[str], Awaitable[ExportInfo | None]]
ListBitmapsFunction = Callable[[str], Awaitable[Sequence[str] | None]]


async def run_handshake(
    handshake: Handshake[T],
    stream: StreamProtocol,
    *,
    start_tls: Callable[[], Awaitable[None]],
    open_export: OpenExportFunction | None = None,
    list_bitmaps: ListBitmapsFunction | None = None,
) -> T:
    """Run ``handshake`` over ``stream`` until it ends, and return its result.

    Backpressure: while the peer does not read, nothing more is received from it, so the replies
    that wait for it stay bounded. A peer that sends options without end does not starve other
    connections: see :mod:`.slices`.

    Args:
        handshake: the client's or the server's side, not yet begun.
        stream: the connection to the other side.
        start_tls: starts TLS on the stream.
        open_export: opens an export, for the server's side; see :class:`OpenExport`.
        list_bitmaps: lists an export's dirty bitmaps, for the server's side.

    Raises:
        ProtocolError: the peer broke the protocol.
        EOFError: the connection ended before the handshake did.
        OSError: the connection broke, or TLS failed.

    """
    steps = handshake.run()
    answer: Any = None
    time_slice = Slice()
    time_slice.begin(monotonic_ns())
    write_resumed = asyncio.Event()
    stream.on_write_resumed = write_resumed.set
    try:
        while True:
            step = steps.send(answer)
            _send(stream, handshake.data_to_send())
            if isinstance(step, StartTLS):
                # At once: the peer's first bytes of TLS must not be received without protection.
                await start_tls()
                answer = None
                continue
            if time_slice.is_over():
                await time_slice.next()
            while stream.write_paused:
                write_resumed.clear()
                await write_resumed.wait()
            answer = await _answer(step, stream, open_export, list_bitmaps)
    except StopIteration as end:
        return cast(T, end.value)
    finally:
        _send(stream, handshake.data_to_send())


async def _answer(
    step: Step,
    stream: StreamProtocol,
    open_export: OpenExportFunction | None,
    list_bitmaps: ListBitmapsFunction | None,
) -> bytes | ExportInfo | Sequence[str] | None:
    if isinstance(step, Receive):
        return await stream.reader.readexactly(step.length)
    if isinstance(step, OpenExport):
        assert open_export is not None  # only a server's handshake asks for it
        return await open_export(step.name)
    if isinstance(step, ListBitmaps):
        assert list_bitmaps is not None  # as above
        return await list_bitmaps(step.name)
    return None


def _send(stream: StreamProtocol, data: bytes) -> None:
    if data and not stream.transport.is_closing():
        stream.transport.write(data)
