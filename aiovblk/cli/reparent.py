"""Upgrade without interruption: at SIGUSR2 a successor takes over the mounted device.

The server starts its own command line again with ``--replace``; that process asks for the device
and gets it (:mod:`aiovblk.mounting.handover`), then this one ends. Requests go on being served.

The successor must be a child of the service manager, not of this process: it is reparented
(:func:`spawn_reparented`). systemd waits for the end of a service's main process only if that is
its own child: for another it assumes that SIGTERM had no effect, and sends SIGKILL at once
(unit_kill_context). :class:`~aiovblk.cli.systemd.Notifier` reports the new main process.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
from collections.abc import Mapping

from .. import interpreter
from ..mounting import Mount
from ..mounting.deadlines import start_thread
from .systemd import Notifier

logger = logging.getLogger("aiovblk")

_COMMAND = "from aiovblk.cli import main; sys.exit(main())"


class Upgrade:
    """Start this command again at SIGUSR2, so that the new process takes over the device.

    Without an identity of the mount the signal is answered with a line on stderr. A second signal
    while a successor is being started, or is running, does nothing; once a successor has failed,
    the next signal starts another.

    Args:
        words: the arguments that this command was called with.
        mount: the device.
        notifier: reports to systemd which process is the service.

    """

    def __init__(self, words: list[str], mount: Mount, notifier: Notifier) -> None:
        self._words = words
        self._mount = mount
        self._notifier = notifier
        self._starting: asyncio.Future[int] | None = None
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, self._start_successor)
        notifier.ready(f"serving {mount.path}")

    def end(self) -> None:
        """Report the successor to systemd, if there is one. Call it once the device is released."""
        if (successor := self._successor()) is not None:
            self._notifier.replaced(successor)

    def _start_successor(self) -> None:
        if self._mount.identity is None:
            reason = "SIGUSR2: there is no --identity by which a successor could find the device"
            logger.error("%s", reason)
            return
        successor = self._successor()
        if self._starting is not None and not self._starting.done():
            return
        if successor is not None and is_running(successor):
            return  # it has not taken the device over yet
        replace = [] if "--replace" in self._words else ["--replace"]
        command = interpreter.command(_COMMAND, *self._words, *replace)
        # In a thread: requests go on being served meanwhile.
        self._starting = start_thread(spawn_reparented, command, self._notifier.environment)

    def _successor(self) -> int | None:
        """Return the process that was started last; None if none was, or it could not be."""
        starting = self._starting
        if starting is None or not starting.done() or starting.exception() is not None:
            return None
        return starting.result()


# A process in between, which ends: what it has started is a child of process 1 from then on, or of
# the nearest child subreaper.
_SPAWN = """
import os, sys
os.set_inheritable(int(sys.argv[1]), False)
process = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
os.write(int(sys.argv[1]), b"%d" % process)
"""


def spawn_reparented(command: list[str], environment: Mapping[str, str]) -> int:
    """Start a program as a child of process 1; blocks for as long as starting Python takes.

    Args:
        command: the path of the program, and its arguments.
        environment: of the program.

    Returns:
        The number of its process.

    Raises:
        OSError: it cannot be started.

    """
    reading, writing = os.pipe()
    with open(reading, "rb") as answer:
        os.set_inheritable(writing, True)
        words = interpreter.bare_command("-c", _SPAWN, f"{writing}", *command)
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
    """Whether a process has not ended. The number of one that has is not soon used again."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
