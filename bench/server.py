"""One server's life."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from .cases import SIZE
from .load import Server
from .pythons import ROOT

STARTING = 60.0  # seconds for a server to listen, in an emulated processor that others use too
STOPPING = 10.0


class ServerError(Exception):
    """A server did not come up, or went away."""


def leave(number: int, frame: FrameType | None) -> None:
    """Leave by way of the cleanups: no server may outlive the benchmark. For SIGTERM."""
    sys.exit(128 + number)


@dataclass(frozen=True, slots=True)
class Program:
    """A peer's program, and the directory it has for itself."""

    process: subprocess.Popen[bytes]
    directory: Path

    def wait_until(self, ready: Callable[[], bool], what: str, *, pause: float = 0.02) -> None:
        """Ask every ``pause`` seconds whether it is ready.

        Raises:
            ServerError: it ended, or was not ready in time; tells what it said, or else ``what``.

        """
        deadline = time.monotonic() + STARTING
        while time.monotonic() < deadline and self.process.poll() is None:
            if ready():
                return
            time.sleep(pause)
        said = (self.directory / "log").read_text(errors="replace").strip()
        raise ServerError(said or what)

    def wait_until_it_listens(self) -> None:
        """Wait until one can connect to its socket.

        Raises:
            ServerError: as :meth:`wait_until`.

        """
        self.wait_until(self._listens, "it does not listen")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(self.directory / "socket"))
            except OSError:
                return False
            return True


@contextmanager
def running(command: Sequence[str], tree: Path = ROOT) -> Iterator[Server]:
    """Run a peer's command; entering means that it listens, leaving ends it.

    Args:
        command: as :attr:`bench.peers.peer.Peer.commands` has it.
        tree: the checkout from which it imports aiovblk, if it is one.

    Raises:
        ServerError: it ended, or did not listen in time.

    """
    with started(command, tree) as program:
        program.wait_until_it_listens()
        yield Server(program.process.pid, program.directory / "socket")


@contextmanager
def started(command: Sequence[str], tree: Path = ROOT, **names: str) -> Iterator[Program]:
    """Start a peer's command, with ``names`` for what it has in braces; leaving ends it."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="aiovblk-bench-", dir=shared))
    try:
        with (directory / "disk").open("wb") as disk:
            disk.truncate(SIZE)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [each.format(directory=directory, **names) for each in command],
                cwd=ROOT,
                # The library of that checkout, whatever the environment has installed.
                env={**os.environ, "PYTHONPATH": str(tree)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield Program(process, directory)
        finally:
            stop(process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process, by force if it does not in time."""
    process.terminate()
    try:
        process.wait(STOPPING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
