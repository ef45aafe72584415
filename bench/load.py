"""Asking a server: by loadgen, which is native/loadgen.c, or by fio."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import fio, loadgen
from .cases import Case, Client
from .figures import Figures, LoadError
from .process import cpu_seconds, tree

PATIENCE = 60.0  # seconds more than a run may take, until it counts as hung


@dataclass(frozen=True, slots=True)
class Server:
    """A server that can be asked.

    Args:
        pid: its process; its children are part of it.
        socket: where it listens.
        device: the ``/dev/nbdN`` that it is behind, for one in the kernel's hands.

    """

    pid: int
    socket: Path | None = None
    device: str | None = None


def measure(case: Case, server: Server) -> Figures:
    """Run a case to its end.

    Raises:
        LoadError: the client or a request failed, or it did not end.
        OSError: the server went away.

    """
    if case.client is Client.LOADGEN:
        if server.socket is None:
            raise LoadError("loadgen asks on sockets only")
        command = loadgen.command(case, server.socket, tree(server.pid))
        return loadgen.parse(run(command, case), case)
    before = cpu_seconds(server.pid)
    output = run(fio.command(case, fio.target(server.socket, server.device)), case)
    # fio cannot say what the server took: connecting and disconnecting are part of that here.
    return fio.parse(output, cpu_seconds(server.pid) - before)


def run(command: Sequence[str], case: Case) -> str:
    """Run a client, and return what it printed."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE + case.longest,
            check=False,
        )
    except FileNotFoundError:
        raise LoadError(f"{command[0]} is missing: run make setup") from None
    except subprocess.TimeoutExpired:
        raise LoadError(f"{command[0]} does not end") from None
    if done.returncode:
        raise LoadError((done.stderr or done.stdout).strip()[-500:])
    return done.stdout
