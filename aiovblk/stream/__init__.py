"""A connected stream: bytes received in place, and the handshake that may come before."""

from .connection import StreamProtocol
from .handshake import converse
from .reader import InPlaceStreamReader

__all__ = ["InPlaceStreamReader", "StreamProtocol", "converse"]
