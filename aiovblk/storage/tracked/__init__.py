"""A layer that records which blocks were written since named points in time."""

from .points import Point
from .tracked import MAX_GRANULARITY, Tracked

__all__ = ["MAX_GRANULARITY", "Point", "Tracked"]
