"""A device that this process serves: it is stopped by another process.

STOP_DEV waits for what is in flight, and for what is still to be written back. The kernel carries
it out in a thread that it has made for the io_uring by which the command has come, and that belongs
to the process of that. So a server that is killed while a handler hangs would not end, if it had
sent the command itself: see :mod:`aiovblk.kernel.child_process`.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

from ..kernel.child_process import start, wait
from .commands import ControlCommand, Feature
from .control import ControlledDevice

logger = logging.getLogger("aiovblk")

PACKAGE = Path(__file__).resolve().parent.parent

_PROGRAM = """
import errno, sys, types
package, command, number, flags, seconds = sys.argv[1:]
for name, folder in ("aiovblk", package), ("aiovblk.ublk", package + "/ublk"):
    sys.modules[name] = types.ModuleType(name)  # so that nothing else of it is run
    sys.modules[name].__path__ = [folder]
try:
    from aiovblk.ublk.commands import ControlCommand, Feature
    from aiovblk.ublk.control import ControlledDevice
except Exception:  # the files are gone by now, or may not be read any more
    print(errno.ENOEXEC)
    sys.exit()
try:
    device = ControlledDevice(int(number), Feature(int(flags)))
    device._send(ControlCommand[command], seconds=float(seconds))
except OSError as exc:
    print(exc.errno)
else:
    print(0)
"""


class ServedDevice(ControlledDevice):
    """A device, by the commands of its server; as :class:`.ControlledDevice` otherwise."""

    def _send(self, command: ControlCommand, **options: Any) -> None:
        if command not in (ControlCommand.STOP_DEV, ControlCommand.TRY_STOP_DEV):
            super()._send(command, **options)
            return
        self._refuse_in_child()
        flags = Feature.UNPRIVILEGED_DEV if self.is_unprivileged else Feature(0)
        words = command.name, str(self.number), str(int(flags)), str(options["seconds"])
        try:
            child = start(_PROGRAM, str(PACKAGE), *words)
        except OSError as exc:
            logger.debug("no process can be started to stop ublk device %d: %s", self.number, exc)
            super()._send(command, **options)
            return
        try:
            wait(child)
        except OSError as exc:
            if exc.errno != errno.ENOEXEC:
                raise
            super()._send(command, **options)
