"""Run a command on the host's own kernel, with the promises of a run in a virtual machine."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .apt import ORIGINS
from .console import VMError, find_program, require


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a command on the host."""

    status: int | None
    """The command's exit status, None after a timeout."""
    log: list[str]
    """What the kernel logged meanwhile."""


def run(command: Sequence[str], environment: dict[str, str], timeout: float) -> Outcome:
    """Run `command` as root on this kernel.

    Raises:
        VMError: this kernel has no nbd, or root cannot be had.
    """
    if os.getuid() != 0:
        rerun_as_root(environment)
    if not has_nbd():
        raise VMError(
            f"this kernel has no nbd; use --kernel {' or '.join(ORIGINS)}, which bring their own"
        )
    with open("/dev/kmsg", "rb", buffering=0, opener=nonblocking) as messages:
        os.lseek(messages.fileno(), 0, os.SEEK_END)
        # A session of its own, so that a timeout ends the children too.
        process = subprocess.Popen(
            # By way of a shell, for its exit statuses when there is no such command.
            ["/bin/sh", "-c", 'exec "$@"', "sh", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return Outcome(status, read_messages(messages.fileno()))


def has_nbd() -> bool:
    """Return whether nbd is in this kernel, loaded, or can be loaded."""
    if Path("/sys/block/nbd0").exists() or Path("/sys/module/nbd").exists():
        return True
    modprobe = find_program("modprobe")
    if modprobe is None:
        return False
    return subprocess.run([modprobe, "-n", "-q", "nbd"]).returncode == 0


def rerun_as_root(environment: dict[str, str]) -> None:
    """Replace this process by one of root's; sudo would drop the environment, env carries it."""
    require({"sudo": "sudo"})
    values = [f"{name}={value}" for name, value in environment.items()]
    os.execvp("sudo", ["sudo", "env", *values, sys.executable, *sys.argv])


def nonblocking(path: str, flags: int) -> int:
    """Open `path` so that reading past the last message fails instead of waiting."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_messages(kmsg: int) -> list[str]:
    """Return the text of the records that `kmsg` has (Documentation/ABI/testing/dev-kmsg)."""
    lines = []
    while select.select([kmsg], [], [], 0)[0]:
        try:
            record = os.read(kmsg, 1 << 13)
        except BlockingIOError:
            break
        except BrokenPipeError:  # the kernel overwrote records before we came
            continue
        _, _, text = record.decode(errors="replace").partition(";")
        lines.append(text.partition("\n")[0])
    return lines
