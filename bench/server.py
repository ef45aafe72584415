"""One server's life."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .cases import SIZE
from .load import Target, nbd_target
from .peers.peer import ROOT

STARTING = 20.0  # seconds for a server to listen
STOPPING = 10.0


class ServerError(Exception):
    """A server did not come up, or went away."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that listens."""

    pid: int
    target: Target


@contextmanager
def running(command: Sequence[str]) -> Iterator[Server]:
    """Run a peer's command; entering means that it listens, leaving ends it.

    Raises:
        ServerError: it ended, or did not listen in time.

    """
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="aiovblk-bench-", dir=shared))
    try:
        with (directory / "disk").open("wb") as disk:
            disk.truncate(SIZE)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [each.format(directory=directory) for each in command],
                cwd=ROOT,
                # The library of this checkout, whatever the environment has installed.
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            _wait_for(directory, process)
            yield Server(process.pid, nbd_target(directory / "socket"))
        finally:
            _stop(process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for(directory: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(directory / "socket"))
                return
            except OSError:
                time.sleep(0.02)
    said = (directory / "log").read_text(errors="replace").strip()
    raise ServerError(said or "it does not listen")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOPPING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
