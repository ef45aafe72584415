"""aiovblk, on each Python and event loop."""

from __future__ import annotations

from ..cases import SIZE, Backend
from .peer import ROOT, AttachedPeer, Peer

VERSIONS = ("3.11", "3.12", "3.13")
LOOPS = ("uvloop", "asyncio")
DEVICES = "bench/peers/plain.py"


def ours() -> list[Peer]:
    """MemoryDevice everywhere, and a plain bytearray of the user's own on the newest Python."""
    peers = [
        _peer(f"aiovblk {version} {loop}", version, loop, f"memory:{SIZE}")
        for version in VERSIONS
        for loop in LOOPS
    ]
    newest = VERSIONS[-1]
    name = f"aiovblk {newest} uvloop"
    peers.append(_peer(f"{name}, bytearray", newest, "uvloop", f"{DEVICES}:Plain"))
    heavy = serve_command(newest, "uvloop", f"{DEVICES}:Packed", "--workers", "2")
    peers.append(
        Peer(
            f"{name}, 2 workers",
            {Backend.HEAVY: heavy},
            probe=_probe(newest),
            package=_package(newest),
        )
    )
    return peers


def serve_command(version: str, loop: str, spec: str, *options: str) -> tuple[str, ...]:
    """``aiovblk serve`` for a peer."""
    return (
        *(interpreter(version), "-m", "aiovblk", "serve", spec),
        *("--loop", loop, "--socket", "{directory}/socket", *options),
    )


def attached_ours() -> list[AttachedPeer]:
    """The newest Python with uvloop, mounted: also over several connections."""
    newest = VERSIONS[-1]
    name = f"aiovblk {newest} uvloop"
    memory = f"memory:{SIZE}"
    return [
        _attached(name, newest, memory),
        _attached(f"{name}, bytearray", newest, f"{DEVICES}:Plain"),
        _attached(f"{name}, 2 connections", newest, memory, connections=2),
        _attached(f"{name}, 4 connections", newest, memory, connections=4),
    ]


def interpreter(version: str) -> str:
    """The Python of an environment of ``make setup``."""
    return str(ROOT / ".venvs" / version / "bin" / "python")


def _attached(name: str, version: str, spec: str, *, connections: int = 1) -> AttachedPeer:
    return AttachedPeer(
        name,
        (
            *(interpreter(version), "-m", "aiovblk", "mount", spec, "{device}"),
            *("--loop", "uvloop", "--connections", str(connections)),
        ),
        probe=_probe(version),
        package=_package(version),
    )


def _probe(version: str) -> tuple[str, ...]:
    return (interpreter(version), "-c", "import aiovblk, uvloop")


def _package(version: str) -> str:
    return f"python{version}-venv, then make setup"


def _peer(name: str, version: str, loop: str, spec: str) -> Peer:
    return Peer(
        name,
        {
            Backend.MEMORY: serve_command(version, loop, spec),
            Backend.SLOW: serve_command(version, loop, f"{DEVICES}:Slow"),
            Backend.HEAVY: serve_command(version, loop, f"{DEVICES}:Packed"),
        },
        probe=_probe(version),
        package=_package(version),
    )
