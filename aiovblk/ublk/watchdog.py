"""The watchdog of ublk devices that survive their server: it ends the waiting if none comes.

The kernel has programs wait for the next server without limit. So a process outlives this one, as
for netlink devices (:mod:`aiovblk.kernel.watchdog`, of which this is the other kind), and takes the
device away when its time is up. It runs :mod:`.watchdog_process`.

A device without ``survive`` needs none: its requests fail when its server dies.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..kernel.watchdog import Watchdog


class UblkWatchdog(Watchdog):
    """The watchdog process for all surviving ublk devices of this process.

    Concurrency: any method may be called from any thread. Devices are known by their numbers, also
    to :meth:`forget` and :meth:`release_to_successor`.
    """

    def __init__(self) -> None:
        super().__init__(Path(__file__).with_name("watchdog_process.py"))

    def watch_device(self, number: int, mark: int, survive: float, owner_token: str) -> None:
        """Watch a device that is about to be served.

        Args:
            number: N of /dev/ublkbN.
            mark: of its identity, which another device of this number has not.
            survive: seconds for another server to come after this process.
            owner_token: of the device's lock (:func:`.locks.owner_token`), which another server
                changes.

        """
        self._set(number, f"+{number} {number} {mark} {survive} {owner_token}")


watchdog = UblkWatchdog()
"""The one of this process."""

os.register_at_fork(after_in_child=watchdog.reset_after_fork)
