"""A connected stream: bytes received in place, and the handshake that may come before."""

from .connection import StreamProtocol
from .handshake import converse
from .reader import InPlaceStreamReader
from .slices import CHECK_INTERVAL, SLICE, Slice
from .spares import Spares

__all__ = [
    "CHECK_INTERVAL",
    "SLICE",
    "InPlaceStreamReader",
    "Slice",
    "Spares",
    "StreamProtocol",
    "converse",
]
