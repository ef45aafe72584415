"""A PostgreSQL server of one's own, for the time of a block."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .programs import PATIENCE

_READY = "database system is ready to accept connections"

_SETTINGS = (
    "listen_addresses=",
    "fsync=off",  # what the kernel has outlives the server, which is all that is killed
    "wal_writer_delay=10s",  # so that only a flush makes something durable
    "log_min_messages=log",
    "shared_buffers=16MB",
    "max_connections=40",
)


class Postgres:
    """A server that listens on a socket in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._user = _user()
        if self._user is not None:
            shutil.chown(folder, self._user)
        options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]
        subprocess.run(
            [_program("initdb"), "--no-sync", f"--pgdata={folder}/data", *options],
            check=True,
            cwd=folder,
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=PATIENCE,
        )
        self.start()

    def start(self) -> None:
        settings = (*_SETTINGS, f"unix_socket_directories={self.folder}")
        self._process = subprocess.Popen(
            [
                _program("postgres"),
                "-D",
                f"{self.folder}/data",
                *(f"--{each}" for each in settings),
            ],
            cwd=self.folder,
            user=self._user,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if _READY in line:
                return
        pytest.fail("PostgreSQL has ended: " + "".join(said))

    def crash(self) -> None:
        """End it at once (its immediate shutdown), with what is in its memory only."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.communicate(timeout=PATIENCE)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """The server; skips the test where there is none."""
    _program("initdb")
    # Not below pytest's folder, which is closed to the user that the server runs as.
    with tempfile.TemporaryDirectory(prefix="aiovblk-postgres-") as folder:
        server = Postgres(Path(folder))
        try:
            yield server
        finally:
            server.crash()


def _program(name: str) -> str:
    # Debian has it in a folder for each version, outside of the path.
    debian = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    path = shutil.which(name, path=":".join([*debian, os.environ["PATH"]]))
    if path is None:
        pytest.skip(f"{name} is missing: install the package postgresql")
    return path


def _user() -> str | None:
    """Whom it runs as: it refuses to be root's."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"
