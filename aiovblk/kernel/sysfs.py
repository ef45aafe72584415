"""Read what /sys shows of NBD devices, without opening a node.

Opening a node can block until its server answers, and makes the process a user of the device.
Reading these files does neither.
"""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path

SYS_BLOCK = Path("/sys/block")

Disk = int | str
"""A block device: N of /dev/nbdN, or the kernel's name of another one (``ublkb0``)."""

SECTOR = 512  # bytes: the unit of /sys/block/*/size, whatever the block size is
POLL = 0.002  # seconds between looks at /sys, whose changes cannot be waited for


def read(path: Path) -> str | None:
    """Read a file, without white space around its text; None if it is missing or not readable."""
    # A device that is being detached right now answers ENODEV in place of ENOENT. The kernel cuts
    # names of processes to 15 bytes, even within a character.
    try:
        return path.read_bytes().decode(errors="backslashreplace").strip()
    except OSError:
        return None


def disk_name(disk: Disk) -> str:
    """Return the kernel's name of a disk."""
    return f"nbd{disk}" if isinstance(disk, int) else disk


def indices() -> list[int]:
    """Return the numbers N of all nbdN that the kernel has, in order."""
    names = (re.fullmatch(r"nbd(\d+)", entry.name) for entry in SYS_BLOCK.glob("nbd*"))
    return sorted(int(name[1]) for name in names if name)


def name_of(device_number: int) -> str | None:
    """Return the kernel's name of a block device (``nbd0``, ``nbd0p1``, ``sda``)."""
    number = f"{os.major(device_number)}:{os.minor(device_number)}"
    try:
        return os.path.basename(os.readlink(SYS_BLOCK.parent / "dev/block" / number))
    except OSError:
        return None


def server_thread(index: int) -> int | None:
    """Return the id of the thread that attached a device; None if it is not attached.

    The file ``pid`` exists from attaching until the last user has closed the device.
    """
    text = read(SYS_BLOCK / f"nbd{index}/pid")
    return int(text) if text and text.isdigit() else None


def size(disk: Disk) -> int:
    """Return the size of a device in bytes; 0 if it is not attached."""
    return int(attribute(disk, "size") or 0) * SECTOR


def is_free(index: int) -> bool:
    """Return whether a device is not attached. A program may still have its node open."""
    return server_thread(index) is None and size(index) == 0


def wait_until_free(index: int, seconds: float, server: int | None = None) -> bool:
    """Wait until a device is no longer attached. Blocks.

    Args:
        index: N of /dev/nbdN.
        seconds: the timeout.
        server: the thread that attached it (:func:`server_thread`): if another one has
            attached it since, it was free. None for any.

    Returns:
        False if it is still attached after ``seconds``.

    """
    deadline = time.monotonic() + seconds
    while not is_free(index):
        if server is not None and server_thread(index) not in (None, server):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def attribute(disk: Disk, name: str) -> str | None:
    """Read a file of the device's directory, such as /sys/block/nbd0."""
    return read(SYS_BLOCK / disk_name(disk) / name)


def queue_attribute(disk: Disk, name: str) -> str | None:
    """Read a file of its request queue; if it lists choices, return the current one."""
    text = attribute(disk, f"queue/{name}")
    chosen = re.search(r"\[(\S+)\]", text or "")
    return chosen[1] if chosen else text


def partitions(disk: Disk) -> list[str]:
    """Return the names of a device's partitions (``nbd0p1``)."""
    whole = disk_name(disk)
    entries = (SYS_BLOCK / whole).glob(f"{whole}p*")
    return sorted((entry.name for entry in entries), key=lambda name: (len(name), name))


def index_of_node(path: str) -> int:
    """Return the index N of the whole NBD device that a node stands for.

    Raises:
        FileNotFoundError: no such node.
        ValueError: it stands for something else; the message says for what.

    """
    status = os.stat(path)
    if not stat.S_ISBLK(status.st_mode):
        raise ValueError("not a block device")
    name = name_of(status.st_rdev) or "unknown"
    if whole := re.fullmatch(r"(nbd\d+)p\d+", name):
        raise ValueError(f"a partition; use the whole device, /dev/{whole[1]}")
    if not (match := re.fullmatch(r"nbd(\d+)", name)):
        raise ValueError(f"not an NBD device (the kernel calls it {name})")
    return int(match[1])
