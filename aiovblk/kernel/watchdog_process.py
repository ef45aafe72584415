"""The watchdog's program: disconnect the netlink devices of a process that died.

    watchdog_process.py PARENT LOCKS

It imports netlink.py from beside it, and nothing else of the package. On its standard input it gets
lines that say what to watch:

* ``+THREAD`` before a thread attaches a device;
* ``+THREAD INDEX PID SURVIVE TOKEN`` when it has attached it;
* ``-THREAD`` when it is detached;
* ``=THREAD`` when it is left to another server;
* ``.`` when nothing more follows.

A device that is left, or whose parent is gone, is disconnected after SURVIVE seconds, unless
another server has come. It counts as the same device only while its file ``pid`` in /sys says PID
(the thread's number outside of containers), and while no other server has written its token to the
lock.

The watchdog of ublk devices (``ublk/watchdog_process.py``) has the same lines and deadlines, but
frees a device in another way.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import syslog
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# At the end, so that no file beside this one shadows a module of the standard library. Imported
# now, since the file may be gone one day.
sys.path.append(str(Path(__file__).parent))

import netlink  # type: ignore[import-not-found]  # it is the one beside this file

SYS_BLOCK = Path("/sys/block")
LOCKS = Path("/run/aiovblk")

HANDOVER_TIMEOUT = 10.0
"""Seconds for a server that a device was handed over to, to begin to serve it."""


class OrphanedDevice(NamedTuple):
    """A device that was left by its server, and is to be disconnected unless another has come.

    Attributes:
        until: the deadline, by :func:`time.monotonic`.
        number: N of nbdN, or ``*`` if unknown.
        pid: what the file ``pid`` in /sys says; of a ublk device, the mark of its identity.
        survives: whether another server may have taken it over.
        owner_token: what the lock file said.

    """

    until: float
    number: str
    pid: str
    survives: bool
    owner_token: str


Free = Callable[[OrphanedDevice], object]
"""Frees a device whose deadline has passed, unless another server has it."""


def main(parent: int, free: Free) -> None:
    """Watch until the parent is gone or has nothing more to watch; then free what is left."""
    watched: dict[str, list[str]] = {}
    orphans: list[OrphanedDevice] = []
    poll = select.poll()
    poll.register(0, select.POLLIN)
    # The end of the pipe is not enough: a child of the parent's may have inherited it.
    timeout: float | None = None
    try:
        poll.register(os.pidfd_open(parent), select.POLLIN)
    except Exception as exc:
        # Gone already, and its last lines are in the pipe. EINVAL is said of a number that is that
        # of a session only (pidfd_prepare in kernel/fork.c): systemd makes each service a leader.
        if isinstance(exc, OSError) and exc.errno in (errno.ESRCH, errno.EINVAL):
            timeout = 0
        else:  # a filter of system calls, perhaps; there is the end of the pipe
            syslog.syslog(f"aiovblk: the watchdog cannot wait for process {parent}: {exc!r}")
    pending = b""
    while True:
        ready = [fd for fd, _ in poll.poll(_soonest(orphans, timeout))]
        data = os.read(0, 4096) if 0 in ready else b""
        *lines, pending = (pending + data).split(b"\n")
        for line in filter(b".".__ne__, lines):
            handle_line(line.decode(), watched, orphans)
        free_what_is_due(orphans, free)
        if b"." in lines or ((ready or timeout == 0) and not data):
            break
    orphans += [release_to_successor(thread, device) for thread, device in watched.items()]
    while orphans:
        time.sleep(max(0, min(orphans).until - time.monotonic()))
        free_what_is_due(orphans, free)


def handle_line(line: str, watched: dict[str, list[str]], orphans: list[OrphanedDevice]) -> None:
    """Handle one line of the parent: change what is watched."""
    thread, *device = line[1:].split()
    if line.startswith("+"):
        watched[thread] = device
        return
    device = watched.pop(thread, [])
    if line.startswith("=") and device:
        orphans.append(release_to_successor(thread, device, at_least=HANDOVER_TIMEOUT))


def release_to_successor(thread: str, device: list[str], at_least: float = 0) -> OrphanedDevice:
    """Set the deadline for another server to come to a device that its server has left."""
    number, pid, survive, *owner_token = device or ["*", thread, "0"]
    seconds = max(float(survive), at_least)
    until = time.monotonic() + seconds
    return OrphanedDevice(until, number, pid, seconds > 0, "".join(owner_token))


def free_what_is_due(orphans: list[OrphanedDevice], free: Free) -> None:
    """Free the devices whose deadline has passed."""
    now = time.monotonic()
    for device in sorted(orphans):
        if device.until <= now:
            orphans.remove(device)
            free(device)


def disconnect(device: OrphanedDevice) -> None:
    """Disconnect a device, or each one that ``pid`` has attached, unless it has a new server."""
    for file in SYS_BLOCK.glob(f"nbd{device.number}/pid"):
        index = int(file.parent.name.removeprefix("nbd"))
        try:
            if file.read_text().strip() != device.pid:
                continue
            # The file says the same when another server has taken over the device, which has then
            # written its token to the lock. If that server has another /run, only the kernel
            # knows: it accepts a connection where one is dead.
            if device.survives and (
                has_new_owner(device, LOCKS / f"nbd{device.number}.lock")
                or not is_connection_accepted(file.with_name("backend"), index)
            ):
                continue
            netlink.disconnect(index)
        except OSError as exc:
            # To syslog: the parent's output is not kept open for as long as this runs.
            syslog.syslog(f"aiovblk: {file.parent.name} cannot be disconnected: {exc}")


def has_new_owner(device: OrphanedDevice, lock: Path) -> bool:
    """Return whether another server, which may be gone as well by now, has owned the lock since."""
    if not device.owner_token:
        return False
    try:
        return lock.read_text().strip() != device.owner_token
    except OSError:
        return False


def is_connection_accepted(backend: Path, index: int) -> bool:
    """Return whether a device lacks a connection, by offering one; it stays without an answer."""
    ours, theirs = socket.socketpair()
    taken: bool = netlink.offer_connection(index, backend.read_text().strip(), ours, theirs)
    return taken


def _soonest(orphans: list[OrphanedDevice], timeout: float | None) -> float | None:
    """Return the milliseconds until the first deadline; ``timeout`` without one."""
    if not orphans:
        return timeout
    return max(0, min(orphans).until - time.monotonic()) * 1000


if __name__ == "__main__":
    LOCKS = Path(sys.argv[2])
    main(int(sys.argv[1]), disconnect)
