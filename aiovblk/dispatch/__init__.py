"""One connection in transmission phase: requests in, handlers, replies out.

Knows neither the kernel nor the network; both hand it a connected stream socket.
"""

from .checks import transmission_flags
from .dispatcher import MAX_CONCURRENCY, Dispatcher
from .stats import Stats
from .stream import InPlaceStreamReader, StreamProtocol

__all__ = [
    "MAX_CONCURRENCY",
    "Dispatcher",
    "InPlaceStreamReader",
    "Stats",
    "StreamProtocol",
    "transmission_flags",
]
