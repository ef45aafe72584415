"""A connected stream: in-place (zero-copy) receiving, backpressure, fairness, and the handshake."""

from .buffers import BufferPool, PooledBuffer
from .handshake import run_handshake
from .protocol import StreamProtocol
from .reader import InPlaceStreamReader
from .slices import CHECK_INTERVAL, SLICE, Slice

__all__ = [
    "CHECK_INTERVAL",
    "SLICE",
    "BufferPool",
    "InPlaceStreamReader",
    "PooledBuffer",
    "Slice",
    "StreamProtocol",
    "run_handshake",
]
