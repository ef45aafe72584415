"""Starting a program that is a child of the service manager's, not of this process.

systemd waits for the end of a service's main process only if that is its own child: of another it
takes for granted that SIGTERM had no effect, and sends SIGKILL at once (unit_kill_context).
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Mapping

from .. import interpreter
from ..mounting import Mount
from ..mounting.deadlines import start_thread
from .systemd import Notifier

# In between: a process that ends. Whatever it has started belongs to process 1 from then on.
_START = """
import os, sys
os.set_inheritable(int(sys.argv[1]), False)
process = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
os.write(int(sys.argv[1]), b"%d" % process)
"""


def spawn_reparented(command: list[str], environment: Mapping[str, str]) -> int:
    """Start a program; blocks for as long as it takes to start Python.

    Returns:
        The process.

    Raises:
        OSError: it cannot be started.

    """
    reading, writing = os.pipe()
    with open(reading, "rb") as answer:
        os.set_inheritable(writing, True)
        words = interpreter.bare_command("-c", _START, f"{writing}", *command)
        try:
            # The threads of this package block all signals, which would be inherited.
            between = os.posix_spawn(words[0], words, environment, setsigmask=())
        finally:
            os.close(writing)
        process = answer.read()
        os.waitpid(between, 0)
    if not process:
        raise OSError(errno.ENOEXEC, f"{command[0]} cannot be started")
    return int(process)


def is_running(process: int) -> bool:
    """Whether a process has not ended; the number of one that has is not used again soon."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


_COMMAND = "from aiovblk.cli import main; sys.exit(main())"


class Upgrade:
    """At SIGUSR2, this command is started again, and handed the device.

    Args:
        words: what this command was called with.
        mount: the device.
        notifier: tells systemd which process is the service.

    """

    def __init__(self, words: list[str], mount: Mount, notifier: Notifier) -> None:
        self._words = words
        self._mount = mount
        self._notifier = notifier
        self._starting: asyncio.Future[int] | None = None
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, self._begin)
        notifier.ready(f"serving {mount.path}")

    def end(self) -> None:
        """The device is unmounted, or handed over."""
        if (successor := self._successor()) is not None:
            self._notifier.replaced(successor)

    def _begin(self) -> None:
        if self._mount.identity is None:
            reason = "SIGUSR2: there is no --identity by which a successor could find the device"
            print(f"aiovblk: {reason}", file=sys.stderr, flush=True)
            return
        successor = self._successor()
        if self._starting is not None and not self._starting.done():
            return
        if successor is not None and is_running(successor):
            return  # it is still at it
        replace = [] if "--replace" in self._words else ["--replace"]
        command = interpreter.command(_COMMAND, *self._words, *replace)
        # In a thread: requests go on being served meanwhile.
        self._starting = start_thread(spawn_reparented, command, self._notifier.environment)

    def _successor(self) -> int | None:
        """The process that was started last, if it could be."""
        starting = self._starting
        if starting is None or not starting.done() or starting.exception() is not None:
            return None
        return starting.result()
