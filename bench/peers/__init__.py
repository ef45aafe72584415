"""The servers that are compared."""

from __future__ import annotations

from .native import attached_native, native
from .ours import attached_ours, ours
from .peer import AttachedPeer, Peer
from .theirs import attached_theirs, theirs

__all__ = ["AttachedPeer", "Peer", "all_peers", "attached_peers"]


def all_peers() -> list[Peer]:
    """Every peer that there could be on some machine, in the order of the tables."""
    return [*native(), *theirs(), *ours()]


def attached_peers() -> list[AttachedPeer]:
    """Those that can be attached to the kernel; where the name is the same, the server is too."""
    return [*attached_native(), *attached_theirs(), *attached_ours()]
