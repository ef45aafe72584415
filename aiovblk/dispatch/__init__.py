"""One connection in transmission phase: requests in, handlers, replies out.

Knows neither the kernel nor the network; both hand it a connected stream socket.
"""

from ..latency import Latency
from .budget import Budget, Share
from .checks import transmission_flags
from .dispatcher import Dispatcher
from .failures import Failures, Reporter, in_words, is_bug
from .running import SLOW_REQUEST
from .stats import Stats
from .turns import MAX_CONCURRENCY, Turns

__all__ = [
    "MAX_CONCURRENCY",
    "SLOW_REQUEST",
    "Budget",
    "Dispatcher",
    "Failures",
    "Latency",
    "Reporter",
    "Share",
    "Stats",
    "Turns",
    "in_words",
    "is_bug",
    "transmission_flags",
]
