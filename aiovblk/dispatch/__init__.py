"""One connection in transmission phase: requests in, handlers, replies out.

Knows neither the kernel nor the network; both hand it a connected stream socket.
"""

from ..latency import LatencyHistogram
from .concurrency import MAX_CONCURRENCY, ConcurrencyLimiter
from .dispatcher import Dispatcher
from .failures import FailureLog, Reporter, format_exception, is_bug
from .limits import HandlerLimits
from .memory_budget import ConnectionQuota, MemoryBudget
from .slow_requests import DEFAULT_SLOW_REQUEST
from .stats import Stats
from .validation import transmission_flags

__all__ = [
    "DEFAULT_SLOW_REQUEST",
    "MAX_CONCURRENCY",
    "ConcurrencyLimiter",
    "ConnectionQuota",
    "Dispatcher",
    "FailureLog",
    "HandlerLimits",
    "LatencyHistogram",
    "MemoryBudget",
    "Reporter",
    "Stats",
    "format_exception",
    "is_bug",
    "transmission_flags",
]
