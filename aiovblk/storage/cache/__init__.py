"""A cache: a fast device, or memory, in front of a slow device."""

from .cache import Cache, Policy
from .lines import CacheStats

__all__ = ["Cache", "CacheStats", "Policy"]
