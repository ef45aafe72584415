"""What the watchdog does; a program of its own, which has netlink.py and nothing else of ours.

    watchdog_main.py PARENT

On its standard input it is told what to watch: ``+THREAD`` before a thread attaches a device,
``+THREAD INDEX PID`` when it has, ``-THREAD`` when the device is detached. When the parent is gone
it disconnects what is left. A device is taken for the one that was meant only while its file
``pid`` in /sys says the same: the thread, as those see it who are not in a container.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

# At the end, since there is a queue.py beside it. Now, since the file may be gone one day.
sys.path.append(str(Path(__file__).parent))

import netlink  # type: ignore[import-not-found]

SYS_BLOCK = Path("/sys/block")


def main(parent: int) -> None:
    """Watch until the parent is gone, or has nothing more to be watched."""
    watched: dict[str, list[str]] = {}
    poll = select.poll()
    poll.register(0, select.POLLIN)
    # The end of the pipe is not enough: a child of the parent's may have inherited it.
    patience: int | None = None
    try:
        poll.register(os.pidfd_open(parent), select.POLLIN)
    except ProcessLookupError:  # gone already, and what it had to say is in the pipe
        patience = 0
    pending = b""
    while True:
        ready = [fd for fd, _ in poll.poll(patience)]
        data = os.read(0, 4096) if 0 in ready else b""
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            note(line.decode(), watched)
        if not data:
            break
    for thread, device in watched.items():
        index, pid = device or ["*", thread]
        free(index, pid)


def note(line: str, watched: dict[str, list[str]]) -> None:
    """Take note of what is to be watched."""
    thread, *device = line[1:].split()
    if line.startswith("+"):
        watched[thread] = device
    else:
        watched.pop(thread, None)


def free(index: str, pid: str) -> None:
    """Disconnect the device of an index, or any, that is said to be attached by ``pid``."""
    for file in SYS_BLOCK.glob(f"nbd{index}/pid"):
        try:
            if file.read_text().strip() == pid:
                netlink.disconnect(int(file.parent.name.removeprefix("nbd")))
        except OSError as exc:
            print(f"aiovblk: {file.parent.name} cannot be disconnected: {exc}", file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]))
