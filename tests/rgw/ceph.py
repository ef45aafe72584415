"""Run Ceph on one machine: a monitor, an OSD that stores in memory, and gateways that speak S3.

Everything listens on 127.0.0.1, and is in one temporary folder. Each process is ended by the
context manager that has started it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

import pytest

TIMEOUT = 60.0  # seconds for any one command, and for a gateway to answer
_LOG_TAIL = 2000  # characters of a log that a failure shows

_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")

_SETTINGS = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}/0]
public network = 127.0.0.0/8
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
run dir = {folder}
crash dir = {folder}
log file =
log to stderr = true
mon cluster log to file = false
admin socket =
plugin dir = {libraries}/ceph
erasure code dir = {libraries}/ceph/erasure-code
osd class dir = {libraries}/rados-classes
osd objectstore = memstore
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon data avail crit = 0
paxos propose interval = 0.1
rgw thread pool size = 64
"""
# cephx stays on, because a gateway without it never gets past its monitor. A monitor would exit
# when the disk of its folder is nearly full.  By default each change of the cluster's maps
# waits for a second, and a gateway makes eight when it comes first.


@dataclass(frozen=True)
class Installation:
    """The folder with Ceph's programs."""

    root: Path

    @classmethod
    def find(cls) -> Installation:
        """Find the system's, or the one that ``tools/setup rgw`` has unpacked."""
        if all(shutil.which(name) for name in _PROGRAMS):
            return cls(Path("/"))
        general = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        unpacked = Path(os.environ.get("AIOVBLK_CACHE") or f"{general}/aiovblk", "ceph")
        if not unpacked.exists():
            pytest.fail(
                "Ceph is missing: run make test-rgw, which unpacks it,"
                " or install ceph-mon, ceph-osd, ceph-common and radosgw",
                pytrace=False,
            )
        return cls(unpacked)

    @property
    def libraries(self) -> Path:
        """The folder of shared libraries."""
        return next(self.root.glob("usr/lib/*/rados-classes")).parent

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the programs."""
        if self.root == Path("/"):
            return dict(os.environ)
        library = str(self.libraries)
        libraries = [library, f"{library}/ceph", library.replace("/usr/lib/", "/lib/")]
        return {
            **os.environ,
            "PATH": f"{self.root}/usr/bin:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(libraries),
            "PYTHONPATH": f"{self.root}/usr/lib/python3/dist-packages",
        }


class Ceph:
    """A cluster with one user, whose keys are ``key`` and ``secret``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._installation = Installation.find()
        self._cluster = str(uuid.uuid4())
        self._mon_port = free_port()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the cluster for the time of a block."""
        self._prepare()
        with ExitStack() as daemons:
            daemons.enter_context(self.daemon("ceph-mon", "-i", "a"))
            self.run("ceph", "osd", "new", self._cluster)
            self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", self._cluster)
            daemons.enter_context(self.daemon("ceph-osd", "-i", "0"))
            user = ("--uid=user", "--display-name=user", "--access-key=key", "--secret-key=secret")
            self.run("radosgw-admin", "user", "create", *user)
            yield

    def _prepare(self) -> None:
        libraries = self._installation.libraries
        values = {"fsid": self._cluster, "port": self._mon_port, "libraries": libraries}
        text = _SETTINGS.format(folder=self._folder, **values)
        (self._folder / "ceph.conf").write_text(text)
        for name in ("mon", "osd"):
            (self._folder / name).mkdir()
        rights = [word for daemon in ("mon", "osd") for word in ("--cap", daemon, "allow *")]
        keyring = str(self._folder / "keyring")
        Path(keyring).touch()
        for name in ("mon.", "osd.0", "client.admin"):
            self.run("ceph-authtool", keyring, "--name", name, "--gen-key", *rights)
        monmap = str(self._folder / "monmap")
        address = f"[v2:127.0.0.1:{self._mon_port}]"
        self.run("monmaptool", "--create", "--fsid", self._cluster, "--addv", "a", address, monmap)
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)

    def run(self, name: str, *arguments: str) -> None:
        """Run one of its programs, and wait for it."""
        try:
            done = subprocess.run(
                [name, "-c", f"{self._folder}/ceph.conf", *arguments],
                env=self._installation.environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired as exc:
            self.fail(str(exc))
        if done.returncode:
            self.fail(f"{name} {' '.join(arguments)}: {done.stdout.decode(errors='replace')}")

    @contextmanager
    def daemon(self, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run one of its daemons for the time of a block."""
        # It is killed when the tests end, however they end.
        command = ["setpriv", "--pdeathsig", "KILL", "--", name, "-f"]
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "-c", f"{self._folder}/ceph.conf", *arguments],
                env=self._installation.environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            end(process)

    def fail(self, reason: str) -> NoReturn:
        """Fail the running test, with the end of the daemons' logs."""
        logs = sorted(self._folder.glob("*.log"))
        tails = [f"{log.name}: {log.read_text(errors='replace')[-_LOG_TAIL:]}" for log in logs]
        pytest.fail("\n".join([reason, *tails]), pytrace=False)


class Gateway:
    """A radosgw, which may be killed and started again."""

    def __init__(self, ceph: Ceph) -> None:
        self.port = free_port()
        self._ceph = ceph
        self._running = ExitStack()

    @classmethod
    @contextmanager
    def of(cls, ceph: Ceph) -> Iterator[Self]:
        """Run a gateway for the time of a block."""
        gateway = cls(ceph)
        with gateway._running:
            gateway.start()
            yield gateway

    def start(self) -> None:
        """Start it, and wait until it listens."""
        frontend = f"--rgw-frontends=beast endpoint=127.0.0.1:{self.port}"
        self._process = self._running.enter_context(self._ceph.daemon("radosgw", frontend))
        deadline = time.monotonic() + TIMEOUT
        while not _listens(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._ceph.fail(f"radosgw does not answer; its status is {self._process.poll()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it, in the middle of requests."""
        self._process.kill()
        self._running.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process; kill it if it does not end."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
