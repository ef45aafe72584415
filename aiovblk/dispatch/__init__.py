"""One connection in transmission phase: requests in, handlers, replies out.

Knows neither the kernel nor the network; both hand it a connected stream socket.
"""

from ..latency import LatencyHistogram
from .budget import ConnectionQuota, MemoryBudget
from .checks import transmission_flags
from .dispatcher import Dispatcher
from .failures import FailureLog, Reporter, format_exception, is_bug
from .running import DEFAULT_SLOW_REQUEST
from .stats import Stats
from .turns import MAX_CONCURRENCY, ConcurrencyLimiter

__all__ = [
    "DEFAULT_SLOW_REQUEST",
    "MAX_CONCURRENCY",
    "ConcurrencyLimiter",
    "ConnectionQuota",
    "Dispatcher",
    "FailureLog",
    "LatencyHistogram",
    "MemoryBudget",
    "Reporter",
    "Stats",
    "format_exception",
    "is_bug",
    "transmission_flags",
]
