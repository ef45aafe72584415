"""The servers that are compared."""

from __future__ import annotations

from pathlib import Path

from ..pythons import ROOT
from .native import attached_native, native
from .ours import attached_ours, ours
from .peer import AttachedPeer, Peer
from .theirs import attached_theirs, theirs

__all__ = ["AttachedPeer", "Peer", "all_peers", "attached_peers"]


def all_peers(
    tree: Path = ROOT, other: tuple[str, Path] | None = None, options: str = ""
) -> list[Peer]:
    """Every peer that there could be on some machine, in the order of the tables.

    Args:
        tree: the checkout of aiovblk that is measured.
        other: a revision and its checkout, to be measured too.
        options: of ``aiovblk serve``, to be measured too.

    """
    return [*native(), *theirs(), *ours(tree, other, options)]


def attached_peers(tree: Path = ROOT, other: tuple[str, Path] | None = None) -> list[AttachedPeer]:
    """Those that can be attached to the kernel; where the name is the same, the server is too."""
    return [*attached_native(), *attached_theirs(), *attached_ours(tree, other)]
