"""A connected stream: bytes received in place, and the handshake that may come before."""

from .connection import StreamProtocol
from .handshake import run_handshake
from .reader import InPlaceStreamReader
from .slices import CHECK_INTERVAL, SLICE, Slice
from .spares import BufferPool

__all__ = [
    "CHECK_INTERVAL",
    "SLICE",
    "BufferPool",
    "InPlaceStreamReader",
    "Slice",
    "StreamProtocol",
    "run_handshake",
]
