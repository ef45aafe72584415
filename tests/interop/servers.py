"""Other people's NBD servers, each on a Unix socket for the time of a block."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from .programs import program

_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes a server that gets its socket as systemd hands it over (sd_listen_fds(3))."""


class Server:
    """A server that listens on ``path``; while it is down, clients wait for it to come back."""

    def __init__(self, listener: socket.socket, path: str, command: list[str]) -> None:
        self.path = path
        self._listener = listener
        self._command = command
        self.start()

    def start(self) -> None:
        # The socket listens already, so that nobody has to wait until the server does.
        listener = self._listener.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _AS_SYSTEMD, str(listener), *self._command],
            pass_fds=[listener],
            stdin=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def serving(name: str, *arguments: str) -> Iterator[Server]:
    """A server that takes its socket as systemd hands it over: nbdkit or qemu-nbd."""
    command = [program(name), *arguments]
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = f"{directory}/socket"
        listener.bind(path)
        listener.listen(16)
        server = Server(listener, path, command)
        try:
            yield server
        finally:
            server.kill()


@asynccontextmanager
async def nbd_server(file: Path) -> AsyncIterator[str]:
    """The URI at which nbd-server serves a file to one client, once."""
    command = program("nbd-server")
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path, config = f"{directory}/socket", Path(directory, "config")
        config.write_text(f"[generic]\n[disk]\nexportname = {file}\nflush = true\ntrim = true\n")
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)

        async def serve() -> None:
            # As inetd does: nobody has to wait until it listens.
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            client.setblocking(True)  # it was not, and nbd-server would not notice
            with client:
                arguments = [command, "-d", "0", str(file), "-C", str(config)]
                processes.append(_spawn(arguments, client))

        processes: list[subprocess.Popen[bytes]] = []
        serving = asyncio.ensure_future(serve())
        try:
            yield f"nbd+unix:///disk?socket={path}"
        finally:
            serving.cancel()
            await asyncio.wait([serving])
            for process in processes:
                process.kill()
                process.wait()


def _spawn(command: list[str], stdin: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=stdin.fileno())
