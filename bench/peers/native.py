"""Our own server in C, compiled when it is needed: the limit, and what vblk and BUSE do."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ..cases import DELAY, SIZE, Backend
from .peer import ROOT, AttachedPeer, Peer

SOURCE = Path(__file__).with_name("bare.c")
PROGRAM = ROOT / "build" / "bench" / "bare"
PROBE = ("cc", "--version")
PACKAGE = "gcc libc6-dev"


def native() -> list[Peer]:
    """``bare``: batches on one connection; and ``serial``: one request at a time."""
    where = ("{directory}/socket", str(SIZE))
    slow = ("--delay", str(round(DELAY * 1e6)))
    return [
        Peer(
            "bare C loop",
            {Backend.MEMORY: (str(PROGRAM), *where)},
            probe=PROBE,
            package=PACKAGE,
            connections=1,
        ),
        Peer(
            "C, one request at a time",
            {
                Backend.MEMORY: (str(PROGRAM), "--serial", *where),
                Backend.SLOW: (str(PROGRAM), "--serial", *slow, *where),
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
        AttachedPeer(name, (str(PROGRAM), *how, *where), probe=PROBE, package=PACKAGE)
        for name, how in (("bare C loop", ()), ("C, one request at a time", ("--serial",)))
    ]


def compile_native() -> None:
    """Make the program.

    Raises:
        subprocess.CalledProcessError: the compiler refused; it says why on stderr.

    """
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-Wall", "-pthread", "-o", str(PROGRAM), str(SOURCE)], check=True)
