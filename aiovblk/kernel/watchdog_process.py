"""What the watchdog does; a program of its own, which has netlink.py and nothing else of ours.

    watchdog_process.py PARENT LOCKS

On its standard input it is told what to watch: ``+THREAD`` before a thread attaches a device,
``+THREAD INDEX PID SURVIVE SIGNATURE`` when it has, ``-THREAD`` when it is detached, ``=THREAD``
when it is left to whoever comes for it, and ``.`` when there is nothing more. A device that is
left, or whose parent is gone, is disconnected after SURVIVE seconds, unless somebody has come. It
is taken for the one that was meant only while its file ``pid`` in /sys says the same: the thread,
as those see it who are not in a container; and while nobody else has signed its lock.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import syslog
import time
from pathlib import Path
from typing import NamedTuple

# At the end, since there is a queue.py beside it. Now, since the file may be gone one day.
sys.path.append(str(Path(__file__).parent))

import netlink  # type: ignore[import-not-found]  # it is the one beside this file

SYS_BLOCK = Path("/sys/block")
LOCKS = Path("/run/aiovblk")

HANDOVER_TIMEOUT = 10.0
"""Seconds for a server to begin that was handed a device."""


class OrphanedDevice(NamedTuple):
    """A device that nobody serves, perhaps."""

    until: float
    number: str
    pid: str
    survives: bool
    signature: str


def main(parent: int) -> None:
    """Watch until the parent is gone, or has nothing more to be watched, and nothing is left."""
    watched: dict[str, list[str]] = {}
    left: list[OrphanedDevice] = []
    poll = select.poll()
    poll.register(0, select.POLLIN)
    # The end of the pipe is not enough: a child of the parent's may have inherited it.
    patience: float | None = None
    try:
        poll.register(os.pidfd_open(parent), select.POLLIN)
    except ProcessLookupError:  # gone already, and what it had to say is in the pipe
        patience = 0
    pending = b""
    while True:
        ready = [fd for fd, _ in poll.poll(_soonest(left, patience))]
        data = os.read(0, 4096) if 0 in ready else b""
        *lines, pending = (pending + data).split(b"\n")
        for line in filter(b".".__ne__, lines):
            handle_line(line.decode(), watched, left)
        free_what_is_due(left)
        if b"." in lines or ((ready or patience == 0) and not data):
            break
    left += [release_to_successor(thread, device) for thread, device in watched.items()]
    while left:
        time.sleep(max(0, min(left).until - time.monotonic()))
        free_what_is_due(left)


def handle_line(line: str, watched: dict[str, list[str]], left: list[OrphanedDevice]) -> None:
    """Take note of what is to be watched."""
    thread, *device = line[1:].split()
    if line.startswith("+"):
        watched[thread] = device
        return
    device = watched.pop(thread, [])
    if line.startswith("=") and device:
        left.append(release_to_successor(thread, device, at_least=HANDOVER_TIMEOUT))


def release_to_successor(thread: str, device: list[str], at_least: float = 0) -> OrphanedDevice:
    """Begin to count for a device that is left."""
    number, pid, survive, *signature = device or ["*", thread, "0"]
    seconds = max(float(survive), at_least)
    return OrphanedDevice(time.monotonic() + seconds, number, pid, seconds > 0, "".join(signature))


def free_what_is_due(left: list[OrphanedDevice]) -> None:
    """Disconnect those whose time is up."""
    now = time.monotonic()
    for device in sorted(left):
        if device.until <= now:
            left.remove(device)
            free(device)


def free(device: OrphanedDevice) -> None:
    """Disconnect the device of an index, or any, that is said to be attached by ``pid``."""
    for file in SYS_BLOCK.glob(f"nbd{device.number}/pid"):
        index = int(file.parent.name.removeprefix("nbd"))
        try:
            if file.read_text().strip() != device.pid:
                continue
            # The file says the same when another server has come back to the device, which has
            # then signed the lock; where it has another /run, only the kernel knows: it takes a
            # connection where one is dead.
            if device.survives and (
                has_new_owner(device)
                or not is_connection_accepted(file.with_name("backend"), index)
            ):
                continue
            netlink.disconnect(index)
        except OSError as exc:
            # What the parent printed to is not kept open for as long as this runs.
            syslog.syslog(f"aiovblk: {file.parent.name} cannot be disconnected: {exc}")


def has_new_owner(device: OrphanedDevice) -> bool:
    """Whether a lock was signed by somebody else since, who may be gone as well by now."""
    if not device.signature:
        return False
    try:
        return (LOCKS / f"nbd{device.number}.lock").read_text().strip() != device.signature
    except OSError:
        return False


def is_connection_accepted(backend: Path, index: int) -> bool:
    """Whether a device lacks a connection; if so it has one now, on which nobody answers."""
    ours, theirs = socket.socketpair()
    taken: bool = netlink.offer_connection(index, backend.read_text().strip(), ours, theirs)
    return taken


def _soonest(left: list[OrphanedDevice], patience: float | None) -> float | None:
    """Milliseconds until the first is due, if any is."""
    if not left:
        return patience
    return max(0, min(left).until - time.monotonic()) * 1000


if __name__ == "__main__":
    LOCKS = Path(sys.argv[2])
    main(int(sys.argv[1]))
