"""Other people's servers."""

from __future__ import annotations

from ..cases import DELAY, SIZE, Backend
from ..pythons import ROOT
from .peer import AttachedPeer, Peer

NBDKIT = ("nbdkit", "-f", "-U", "{directory}/socket")
PLUGIN = str(ROOT / "bench" / "peers" / "nbdkit_plugin.py")
MILLISECONDS = f"{DELAY * 1000:g}ms"


def theirs() -> list[Peer]:
    """The memory plugin (C) and the Python plugin of nbdkit, and qemu-nbd."""
    return [nbdkit_memory(), nbdkit_python("parallel"), nbdkit_python("default"), qemu()]


def attached_theirs() -> list[AttachedPeer]:
    """Nbdkit's with nbd-client; qemu-nbd attaches itself."""
    peers = [
        AttachedPeer(
            peer.name,
            peer.commands[Backend.MEMORY],
            probe=peer.probe,
            package=f"{peer.package} nbd-client",
            attach=("nbd-client", "-unix", "{directory}/socket", "{device}"),
            detach=("nbd-client", "-d", "{device}"),
        )
        for peer in (nbdkit_memory(), nbdkit_python("parallel"), nbdkit_python("default"))
    ]
    # Without --verbose it would go to the background.
    command = "qemu-nbd --verbose --format=raw --cache=writeback --connect={device}"
    peers.append(
        AttachedPeer(
            qemu().name,
            (*command.split(), "{directory}/disk"),
            probe=qemu().probe,
            package=qemu().package,
            detach=("qemu-nbd", "--disconnect", "{device}"),
        )
    )
    return peers


def nbdkit_memory() -> Peer:
    """The plugin in C, with 16 threads; slow by the filter that nbdkit has for that."""
    delays = (f"rdelay={MILLISECONDS}", f"wdelay={MILLISECONDS}")
    return Peer(
        "nbdkit memory",
        {
            Backend.MEMORY: (*NBDKIT, "memory", str(SIZE)),
            Backend.SLOW: (*NBDKIT, "--filter=delay", "memory", str(SIZE), *delays),
        },
        probe=("nbdkit", "--dump-plugin", "memory"),
        package="nbdkit",
        is_main=True,
    )


def nbdkit_python(model: str) -> Peer:
    """The plugin in Python: `parallel` has 16 threads, `default` one request at a time."""
    memory = (*NBDKIT, "python", PLUGIN, f"model={model}")
    return Peer(
        f"nbdkit Python, {model}",
        {Backend.MEMORY: memory, Backend.SLOW: (*memory, f"delay={DELAY}")},
        probe=("nbdkit", "--dump-plugin", "python"),
        package="nbdkit-plugin-python",
    )


def qemu() -> Peer:
    """qemu-nbd on a file, which is in memory where /dev/shm is."""
    command = "qemu-nbd --persistent --shared=16 --format=raw --cache=writeback"
    return Peer(
        "qemu-nbd, file in memory",
        {Backend.MEMORY: (*command.split(), "--socket={directory}/socket", "{directory}/disk")},
        probe=("qemu-nbd", "--version"),
        package="qemu-utils",
    )
