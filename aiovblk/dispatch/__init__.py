"""One connection in transmission phase: requests in, handlers, replies out.

Knows neither the kernel nor the network; both hand it a connected stream socket.
"""

from .budget import Budget, Share
from .checks import transmission_flags
from .dispatcher import MAX_CONCURRENCY, Dispatcher
from .stats import Stats

__all__ = [
    "MAX_CONCURRENCY",
    "Budget",
    "Dispatcher",
    "Share",
    "Stats",
    "transmission_flags",
]
