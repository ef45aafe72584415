"""Ending the use of a socket without closing it: a handover, a graceful shutdown."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

from ..stream import StreamProtocol


async def drain(stream: StreamProtocol) -> None:
    """Wait until the write buffer is empty, or the connection is lost."""
    stream.transport.set_write_buffer_limits(0)  # so that a single byte pauses writing
    resumed = asyncio.Event()
    stream.on_write_resumed = resumed.set
    if stream.write_paused:
        await resumed.wait()
    stream.on_write_resumed = None
    stream.transport.set_write_buffer_limits()


def detach(stream: StreamProtocol) -> tuple[socket.socket, bytes]:
    """Release the socket without shutting the connection down, for a handover.

    Reading must be paused, and all be written.

    Returns:
        The socket, as a duplicate, and the bytes that were received and not consumed.

    """
    duplicate = os.dup(stream.transport.get_extra_info("socket").fileno())
    stream.transport.abort()
    reader = stream.reader
    received = bytes(memoryview(reader.buffer)[reader.start : reader.end])
    return socket.socket(fileno=duplicate), received


def stop_receiving(stream: StreamProtocol) -> None:
    """Shut down receiving: what the peer has sent is consumed, then the stream ends."""
    transport = stream.transport
    if not transport.is_closing():
        # On a duplicate: uvloop's own socket cannot be shut down.
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=descriptor) as sock, suppress(OSError):
            sock.shutdown(socket.SHUT_RD)
