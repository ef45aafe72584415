"""Our own server in C, native/bare.c: the limit, and what vblk and BUSE do."""

from __future__ import annotations

from ..cases import DELAY, SIZE, Backend
from ..native import BARE, PACKAGE, PROBE
from .peer import AttachedPeer, Peer


def native() -> list[Peer]:
    """``bare``: batches on one connection; and ``serial``: one request at a time."""
    where = ("{directory}/socket", str(SIZE))
    slow = ("--delay", str(round(DELAY * 1e6)))
    return [
        Peer(
            "bare C loop",
            {Backend.MEMORY: (str(BARE), *where)},
            probe=PROBE,
            package=PACKAGE,
            connections=1,
            is_main=True,
        ),
        Peer(
            "C, one request at a time",
            {
                Backend.MEMORY: (str(BARE), "--serial", *where),
                Backend.SLOW: (str(BARE), "--serial", *slow, *where),
            },
            probe=PROBE,
            package=PACKAGE,
            connections=1,
        ),
    ]


def attached_native() -> list[AttachedPeer]:
    """The same, in the kernel's hands: one process that attaches itself, as vblk's does."""
    where = ("{device}", str(SIZE))
    return [
        AttachedPeer(name, (str(BARE), *how, *where), probe=PROBE, package=PACKAGE)
        for name, how in (("bare C loop", ()), ("C, one request at a time", ("--serial",)))
    ]
