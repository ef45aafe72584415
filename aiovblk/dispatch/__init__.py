"""Serve one connection in transmission phase: receive requests, run handlers, send replies.

Independent of kernel and network: both give it a connected stream socket. The ordinary path of a
request: ``scheduler.py`` (tasks, concurrency limiter), ``serving.py`` (from the receive buffer to
the reply), ``reply_sender.py``; of an unusual one, or one that has to wait: ``receiver.py`` before.
``memory_budget.py`` has the memory quotas that put backpressure on network clients.
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
