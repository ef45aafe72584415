"""A fast device in front of a slow one."""

from .cache import Cache, Policy
from .stats import CacheStats

__all__ = ["Cache", "CacheStats", "Policy"]
