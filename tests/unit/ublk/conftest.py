"""What several modules about devices by ublk begin with."""

from __future__ import annotations

from ...support.ublk_queue import attachment

__all__ = ["attachment"]
