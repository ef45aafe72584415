"""Carries a handshake, which does no I/O by itself, over a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from time import monotonic_ns
from typing import Any, Protocol, TypeVar

from ..protocol import ExportInfo, OpenExport, Receive, StartTLS
from .protocol import StreamProtocol
from .slices import Slice

T = TypeVar("T", covariant=True)


class Handshake(Protocol[T]):
    """Either side of the handshake phase."""

    def data_to_send(self) -> bytes:
        """What is to be sent now."""

    def run(self) -> Generator[Any, Any, T]:
        """What the handshake needs, step by step."""


async def run_handshake(
    handshake: Handshake[T],
    stream: StreamProtocol,
    *,
    start_tls: Callable[[], Awaitable[None]],
    open_export: Callable[[str], Awaitable[ExportInfo | None]] | None = None,
) -> T:
    """Carry ``handshake`` over ``stream`` to its end.

    While the peer does not read, nothing more is received: what waits for it stays bounded. A peer
    that sends options without end leaves others their time: see :mod:`aiovblk.stream.slices`.

    Args:
        handshake: a side of it that has not begun.
        stream: what connects it with the other side.
        start_tls: begins TLS on the stream.
        open_export: answers the server's side; see :class:`OpenExport`.

    Raises:
        ProtocolError: the peer does not keep to the protocol.
        EOFError: the connection ended before the handshake did.
        OSError: it broke, or TLS failed.

    """
    talk = handshake.run()
    answer: Any = None
    time_slice = Slice()
    time_slice.begin(monotonic_ns())
    decongested = asyncio.Event()
    stream.on_write_resumed = decongested.set
    try:
        while True:
            step = talk.send(answer)
            _send(stream, handshake.data_to_send())
            answer = None
            if isinstance(step, StartTLS):
                # At once: the peer answers with the first bytes of TLS, which must not be received
                # as a part of the handshake that nothing protects.
                await start_tls()
                continue
            if time_slice.is_over():
                await time_slice.next()
            while stream.write_paused:
                decongested.clear()
                await decongested.wait()
            if isinstance(step, Receive):
                answer = await stream.reader.readexactly(step.length)
            elif isinstance(step, OpenExport):
                assert open_export is not None  # only a server asks for it
                answer = await open_export(step.name)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        _send(stream, handshake.data_to_send())


def _send(stream: StreamProtocol, data: bytes) -> None:
    if data and not stream.transport.is_closing():
        stream.transport.write(data)
