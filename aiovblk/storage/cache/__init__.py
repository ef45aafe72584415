"""A fast device in front of a slow one."""

from .cache import Cache, Policy
from .lines import CacheStats

__all__ = ["Cache", "CacheStats", "Policy"]
