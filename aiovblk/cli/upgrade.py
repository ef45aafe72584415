"""An upgrade of ``aiovblk mount``: another process takes over the device that it serves."""

from __future__ import annotations

import asyncio
import signal
import sys

from .. import interpreter
from ..mount import Mount
from ..mount.waiting import start_thread
from .notify import Notifier
from .orphan import is_running, spawn_reparented

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
