"""Several devices that hold the same."""

from .layer import Mirror

__all__ = ["Mirror"]
