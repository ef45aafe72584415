"""A mirror (RAID 1): several devices that hold the same."""

from .mirror import Mirror

__all__ = ["Mirror"]
