"""A server in the kernel's hands: attached to a device that programs can read."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .load import Server
from .peers import AttachedPeer
from .peers.peer import which
from .pythons import ROOT
from .server import Program, ServerError, started

SYS_BLOCK = Path("/sys/block")
PAUSE = 0.002  # seconds between two looks at a device; a mount takes longer
PATIENCE = 20.0  # seconds for a command that attaches or detaches
PAGE = 4096


@dataclass(frozen=True, slots=True)
class Mount:
    """Seconds until a first block could be read.

    Args:
        whole: since the first program was started, the server.
        alone: since what had to come first was there: the command that attaches was started when
            the server listened, or :func:`aiovblk.mounted` was called in a running event loop.
            A program that does both in one has none.

    What was not measured is None.

    """

    whole: float | None
    alone: float | None


@contextmanager
def attached(peer: AttachedPeer) -> Iterator[tuple[Server, Mount]]:
    """Start a server and attach it to a free device; leaving detaches it and ends the server.

    Raises:
        ServerError: a command failed, or the device could not be read in time.

    """
    name = _free()
    device = f"/dev/{name}"
    begin = time.perf_counter()
    with started(peer.command, peer.tree, device=device) as program:
        alone = None
        if peer.attach:
            program.wait_until_it_listens()
            alone = time.perf_counter()
            _run(peer.attach, program, device)
        try:
            program.wait_until(lambda: _attached(name), "it attaches nothing", pause=PAUSE)
            read_first_block(device)
            end = time.perf_counter()
            mount = Mount(end - begin, None if alone is None else end - alone)
            yield Server(program.process.pid, device=device), mount
        finally:
            if peer.detach:
                _run(peer.detach, program, device)


def read_first_block(device: str) -> None:
    """Read a device past the kernel's cache: it is answered by its server.

    Raises:
        OSError: it cannot be read.

    """
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, PAGE) as page:  # because O_DIRECT wants memory that is aligned
            os.preadv(fd, [page], 0)
    finally:
        os.close(fd)


def _free() -> str:
    # The file pid is there while the device is served.
    names = sorted(SYS_BLOCK.glob("nbd*"), key=lambda path: int(re.sub(r"\D", "", path.name)))
    for path in names:
        if not (path / "pid").exists() and not _attached(path.name):
            return path.name
    raise ServerError("no NBD device is free")


def _attached(name: str) -> bool:
    # Not by opening it: a device that is open cannot be attached by netlink.
    return (SYS_BLOCK / name / "size").read_text() != "0\n"


def _run(command: Sequence[str], program: Program, device: str) -> None:
    words = [each.format(directory=program.directory, device=device) for each in command]
    try:
        subprocess.run(
            [which(words[0]) or words[0], *words[1:]],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    except subprocess.CalledProcessError as exc:
        raise ServerError((exc.stderr or exc.stdout).strip()) from None
    except subprocess.TimeoutExpired:
        raise ServerError(f"{words[0]} does not end") from None
