"""aiovblk, on each Python and event loop, and at another revision."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..cases import SIZE, Backend
from ..pythons import REFERENCE, ROOT, VERSIONS, Python, find
from .peer import AttachedPeer, Peer

DEVICES = str(ROOT / "bench" / "peers" / "plain.py")
SPECS = {
    Backend.MEMORY: f"memory:{SIZE}",
    Backend.SLOW: f"{DEVICES}:Slow",
    Backend.HEAVY: f"{DEVICES}:Packed",
}
SUBJECT = "aiovblk"
"""The reference: MemoryDevice, uvloop, the reference Python."""
USERS = "aiovblk, bytes(view)"
"""The same with a device that a user would write."""
SLICES = "aiovblk, bytearray slice"
TWO_WORKERS = "aiovblk, 2 workers"


def ours(tree: Path = ROOT, other: tuple[str, Path] | None = None, options: str = "") -> list[Peer]:
    """MemoryDevice everywhere; devices of the user's own and workers on the reference Python.

    Args:
        tree: the checkout that is measured.
        other: a revision and its checkout, measured beside it.
        options: of ``aiovblk serve``, with which the reference is measured once more.

    """
    peers = [_peer(SUBJECT, REFERENCE, "uvloop", tree, is_main=True)]
    if other is not None:
        revision, its_tree = other
        name = at_revision(revision)
        peers.append(_peer(name, REFERENCE, "uvloop", its_tree, is_main=True))
    if options:
        peers.append(_peer(with_options(options), REFERENCE, "uvloop", tree, *shlex.split(options)))
    for name, device in ((USERS, "Copying"), (SLICES, "Slicing")):
        peers.append(_user(name, device, tree))
        if other is not None:
            peers.append(_user(at_revision(other[0], name), device, other[1]))
    peers.append(_peer("aiovblk, asyncio", REFERENCE, "asyncio", tree))
    peers += [
        _peer(f"aiovblk, Python {version}", version, "uvloop", tree)
        for version in VERSIONS
        if version != REFERENCE
    ]
    heavy = serve_command(REFERENCE, "uvloop", f"{DEVICES}:Packed", "--workers", "2")
    peers.append(
        Peer(
            TWO_WORKERS,
            {Backend.HEAVY: heavy},
            probe=_probe(REFERENCE),
            package=_package(REFERENCE),
            tree=tree,
            is_main=True,
        )
    )
    return peers


def at_revision(revision: str, name: str = SUBJECT) -> str:
    """What a peer is called at another revision."""
    return f"{name} at {revision}"


def with_options(options: str) -> str:
    """What the reference is called with options of ``aiovblk serve``."""
    return f"{SUBJECT} {options}"


def attached_ours(tree: Path = ROOT, other: tuple[str, Path] | None = None) -> list[AttachedPeer]:
    """The reference, mounted: also over several connections, and at another revision."""
    memory = f"memory:{SIZE}"
    peers = [_attached(SUBJECT, memory, tree)]
    if other is not None:
        peers.append(_attached(at_revision(other[0]), memory, other[1]))
    return [
        *peers,
        _attached(USERS, f"{DEVICES}:Copying", tree),
        _attached("aiovblk, 2 connections", memory, tree, connections=2),
        _attached("aiovblk, 4 connections", memory, tree, connections=4),
    ]


def serve_command(version: str, loop: str, spec: str, *options: str) -> tuple[str, ...]:
    """``aiovblk serve`` for a peer."""
    return (
        *(*python_command(version), "-m", "aiovblk", "serve", spec),
        *("--loop", loop, "--socket", "{directory}/socket", *options),
    )


def python_command(version: str) -> tuple[str, ...]:
    """What starts an interpreter that imports from ``PYTHONPATH``, not from where it is started.

    It fails where there is none.
    """
    found = find(version) or Python(version, (f"python{version}",), is_optimized=False)
    return (*found.command, "-P")


def _attached(name: str, spec: str, tree: Path, *, connections: int = 1) -> AttachedPeer:
    return AttachedPeer(
        name,
        (
            *(*python_command(REFERENCE), "-m", "aiovblk", "mount", spec, "{device}"),
            *("--loop", "uvloop", "--connections", str(connections)),
        ),
        probe=_probe(REFERENCE),
        package=_package(REFERENCE),
        tree=tree,
    )


def _probe(version: str) -> tuple[str, ...]:
    return (*python_command(version), "-c", "import aiovblk, uvloop")


def _package(version: str) -> str:
    return f"python{version}-venv, then make setup"


def _user(name: str, device: str, tree: Path) -> Peer:
    return Peer(
        name,
        {Backend.MEMORY: serve_command(REFERENCE, "uvloop", f"{DEVICES}:{device}")},
        probe=_probe(REFERENCE),
        package=_package(REFERENCE),
        tree=tree,
    )


def _peer(
    name: str, version: str, loop: str, tree: Path, *options: str, is_main: bool = False
) -> Peer:
    return Peer(
        name,
        {backend: serve_command(version, loop, spec, *options) for backend, spec in SPECS.items()},
        is_main=is_main,
        probe=_probe(version),
        package=_package(version),
        tree=tree,
    )
