"""Waiting, systemctl, and the packaged unit as somebody would install it."""

from __future__ import annotations

import os
import pwd
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from aiovblk.kernel import sysfs

from ..support.polling import holds_within
from .devices import IMAGE as IMAGE

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = 16 * 1024 * 1024
NODE = "/dev/nbd3"
UNIT = "aiovblk@nbd3.service"

PATIENCE = 90.0
"""Seconds after which a test gives up: an emulated machine takes 20 times as long as others."""


def until(condition: Callable[[], object], what: str) -> None:
    # Looking takes a process, mostly.
    assert holds_within(PATIENCE, condition, interval=0.2), f"waited in vain: {what}"


def run(*command: str, status: int | None = 0, patience: float = PATIENCE) -> str:
    """Run a command that should end with a status, or with any; returns what it printed."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=patience
    )
    assert status is None or done.returncode == status, f"{command}: {done.stdout}"
    return done.stdout.strip()


def ensure_user(name: str) -> None:
    """Have an ordinary user, which other tests may have made."""
    with suppress(KeyError):
        pwd.getpwnam(name)
        return
    run("useradd", name)


def as_user(name: str) -> Sequence[str]:
    """What runs a command as a user does who has logged in: the user's groups, no capabilities."""
    user = ["setpriv", f"--reuid={name}", f"--regid={name}", "--init-groups", "--inh-caps=-all"]
    return [*user, "--reset-env", "env", "--chdir=/"]


def show(name: str, unit: str = UNIT) -> str:
    return run("systemctl", "show", "--value", "--property", name, unit)


def journal(unit: str = UNIT) -> str:
    """What systemd and the service said, since the machine was started."""
    run("journalctl", "--sync")
    return run("journalctl", "--boot", "--no-pager", "--output", "cat", "--unit", unit)


def attached() -> list[int]:
    return [index for index in sysfs.indices() if not sysfs.is_free(index)]


def configure(spec: str, options: str = "", service: Sequence[str] = ()) -> None:
    """Write the unit's configuration, and settings that a test wants otherwise."""
    Path("/etc/aiovblk").mkdir(exist_ok=True)
    Path("/etc/aiovblk/nbd3.conf").write_text(f"SPEC={spec}\nOPTIONS={options}\n")
    drop_in = Path(f"/run/systemd/system/{UNIT}.d/test.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("\n".join(["[Service]", *service, ""]))
    run("systemctl", "daemon-reload")


class Writer:
    """A thread that writes durably, again and again; an error ends it."""

    def __init__(self, path: str) -> None:
        self.error: OSError | None = None
        self.count = 0
        self._ended = threading.Event()
        self._fd = os.open(path, os.O_RDWR | os.O_DSYNC)
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def goes_on(self) -> None:
        """Wait until it has written what it began to write after this call."""
        goal = self.count + 2
        until(lambda: self.count >= goal or self.error, "the writer")
        assert self.error is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(PATIENCE)
        os.close(self._fd)
        assert self.error is None

    def _write(self) -> None:
        try:
            while not self._ended.is_set():
                block = self.count.to_bytes(8, "big") * 512
                os.pwrite(self._fd, block, self.count % 64 * len(block))
                self.count += 1
        except OSError as exc:
            self.error = exc
