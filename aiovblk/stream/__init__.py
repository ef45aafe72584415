"""A connected stream: in-place (zero-copy) receiving, backpressure, fairness, and the handshake."""

from .buffers import BufferPool, PooledBuffer
from .busy_poll import BusyPoll
from .handshake import run_handshake
from .protocol import StreamProtocol
from .reader import InPlaceStreamReader
from .receive_buffer import BUFFER_SIZE, ReceiveBuffer
from .slices import SLICE, Slice
from .tls import start_tls

__all__ = [
    "BUFFER_SIZE",
    "SLICE",
    "BufferPool",
    "BusyPoll",
    "InPlaceStreamReader",
    "PooledBuffer",
    "ReceiveBuffer",
    "Slice",
    "StreamProtocol",
    "run_handshake",
    "start_tls",
]
