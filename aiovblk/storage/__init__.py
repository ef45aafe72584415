"""Devices that are ready to be mounted."""

from .memory import MemoryDevice

__all__ = ["MemoryDevice"]
