"""Drive a handshake, which does no I/O by itself, over a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic_ns
from typing import Any, TypeVar

from ..protocol import ExportInfo, Handshake, OpenExport, Receive, StartTLS
from .protocol import StreamProtocol
from .slices import Slice

T = TypeVar("T")


async def run_handshake(
    handshake: Handshake[T],
    stream: StreamProtocol,
    *,
    start_tls: Callable[[], Awaitable[None]],
    open_export: Callable[[str], Awaitable[ExportInfo | None]] | None = None,
) -> T:
    """Run ``handshake`` over ``stream`` until it ends, and return its result.

    Backpressure: while the peer does not read, nothing more is received from it, so the replies
    that wait for it stay bounded. A peer that sends options without end does not starve other
    connections: see :mod:`aiovblk.stream.slices`.

    Args:
        handshake: the client's or the server's side, not yet begun.
        stream: the connection to the other side.
        start_tls: starts TLS on the stream.
        open_export: opens an export by its name, for the server's side; see :class:`OpenExport`.

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
            answer = None
            if isinstance(step, StartTLS):
                # At once: the peer answers with the first bytes of TLS, which must not be received
                # as a part of the unprotected handshake.
                await start_tls()
                continue
            if time_slice.is_over():
                await time_slice.next()
            while stream.write_paused:
                write_resumed.clear()
                await write_resumed.wait()
            if isinstance(step, Receive):
                answer = await stream.reader.readexactly(step.length)
            elif isinstance(step, OpenExport):
                assert open_export is not None  # only a server's handshake asks for it
                answer = await open_export(step.name)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        _send(stream, handshake.data_to_send())


def _send(stream: StreamProtocol, data: bytes) -> None:
    if data and not stream.transport.is_closing():
        stream.transport.write(data)
