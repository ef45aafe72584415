from __future__ import annotations

from ...support.attach_machine import by_netlink, machine

__all__ = ["by_netlink", "machine"]
