"""A connected stream: bytes received in place, and the handshake that may come before."""

from .connection import StreamProtocol
from .handshake import converse
from .reader import InPlaceStreamReader
from .spares import Spares

__all__ = ["InPlaceStreamReader", "Spares", "StreamProtocol", "converse"]
