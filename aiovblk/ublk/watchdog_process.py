"""The watchdog's program: take away the ublk devices of a process that died, if none takes over.

    watchdog_process.py PARENT LOCKS

Its input, and how it keeps deadlines, are as in :mod:`aiovblk.kernel.watchdog_process`, but
with the number of a device in place of a thread's, and the mark of its identity in place of PID. It
imports what it takes to send the driver a command, and no other part of the package: that takes a
third of the memory.
"""

from __future__ import annotations

import errno
import sys
import syslog
import time
import types
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def _make_package(name: str, directory: Path) -> None:
    """Have the modules of a directory be found as those of a package, which itself is not run."""
    package = types.ModuleType(name)
    package.__path__ = [str(directory)]
    sys.modules[name] = package


if __name__ == "__main__":
    _make_package("aiovblk", PACKAGE)
    _make_package("aiovblk.kernel", PACKAGE / "kernel")
    _make_package("aiovblk.ublk", PACKAGE / "ublk")

# All is imported now, since the files may be gone one day; ctypes, since it is imported late else.
import ctypes  # noqa: E402, F401

from aiovblk.kernel import watchdog_process as deadlines  # noqa: E402
from aiovblk.ublk import control  # noqa: E402
from aiovblk.ublk.commands import State, UblkDeviceInfo  # noqa: E402

LOCKS = Path("/run/aiovblk")

STOP_TIMEOUT = 60.0
"""Seconds for the kernel to fail the requests that wait, and to take the device away."""

DEATH_TIMEOUT = 10.0
"""Seconds for the kernel to notice that a server is dead, which may end long after its death."""

POLL = 0.05  # seconds between looks at a device


def free(device: deadlines.OrphanedDevice) -> None:
    """Take a device away, unless it has a new server: what waits for it fails with EIO."""
    try:
        info = _info_after_death(device)
        if info is not None and info.number is not None:
            controlled = control.ControlledDevice(info.number, info.flags)
            controlled.stop(STOP_TIMEOUT)
            controlled.delete()
    except OSError as exc:
        # To syslog: the parent's output is not kept open for as long as this runs.
        syslog.syslog(f"aiovblk: /dev/ublkb{device.number} cannot be taken away: {exc}")


def _info_after_death(device: deadlines.OrphanedDevice) -> UblkDeviceInfo | None:
    """Wait until a device waits for a server; None if it does not, or is another one by now.

    Raises:
        OSError: the driver does not say.

    """
    lock = LOCKS / f"ublkb{device.number}.lock"
    deadline = time.monotonic() + DEATH_TIMEOUT
    while True:
        try:
            info = control.info(int(device.number))
        except OSError as exc:
            if exc.errno == errno.ENODEV:
                return None  # it is gone
            # A shortage of memory, say. What waits for the device would wait for ever.
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL)
            continue
        if str(info.mark) != device.pid or deadlines.has_new_owner(device, lock):
            return None
        if info.state == State.QUIESCED:
            return info
        if info.state != State.LIVE or time.monotonic() > deadline:
            return None
        time.sleep(POLL)


if __name__ == "__main__":
    LOCKS = Path(sys.argv[2])
    deadlines.main(int(sys.argv[1]), free)
