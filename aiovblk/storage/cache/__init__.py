"""A fast device in front of a slow one."""

from .cache import Cache, Policy
from .stats import Stats

__all__ = ["Cache", "Policy", "Stats"]
