"""A connected stream: in-place (zero-copy) receiving, backpressure, fairness, and the handshake."""

from .buffers import BufferPool
from .busy_poll import BusyPoll
from .handshake import run_handshake
from .protocol import StreamProtocol
from .reader import BUFFER_SIZE, InPlaceStreamReader
from .slices import CHECK_INTERVAL, SLICE, Slice

__all__ = [
    "BUFFER_SIZE",
    "CHECK_INTERVAL",
    "SLICE",
    "BufferPool",
    "BusyPoll",
    "InPlaceStreamReader",
    "Slice",
    "StreamProtocol",
    "run_handshake",
]
