"""The servers that are compared."""

from __future__ import annotations

from .native import native
from .ours import ours
from .peer import Peer
from .theirs import theirs

__all__ = ["Peer", "all_peers"]


def all_peers() -> list[Peer]:
    """Every peer that there could be on some machine, in the order of the tables."""
    return [*native(), *theirs(), *ours()]
