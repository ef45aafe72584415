"""Read what /sys and /proc show of NBD devices, without opening a node.

Opening a node can block until its server answers, and makes the process a user of the device.
Reading these files does neither.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

SYS_BLOCK = Path("/sys/block")
PROC = Path("/proc")
SECTOR = 512  # bytes: the unit of /sys/block/*/size, whatever the block size is
PF_KTHREAD = 0x00200000  # include/linux/sched.h
POLL = 0.002  # seconds between looks at /sys, whose changes cannot be waited for


def read(path: Path) -> str | None:
    """Read a file, without white space around its text; None if it is missing or not readable."""
    # A device that is being detached right now answers ENODEV in place of ENOENT. The kernel cuts
    # names of processes to 15 bytes, even within a character.
    try:
        return path.read_bytes().decode(errors="backslashreplace").strip()
    except OSError:
        return None


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


def size(index: int) -> int:
    """Return the size of a device in bytes; 0 if it is not attached."""
    return int(read(SYS_BLOCK / f"nbd{index}/size") or 0) * SECTOR


def is_free(index: int) -> bool:
    """Tell whether a device is not attached. A program may still have its node open."""
    return server_thread(index) is None and size(index) == 0


def attribute(index: int, name: str) -> str | None:
    """Read a file of /sys/block/nbdN."""
    return read(SYS_BLOCK / f"nbd{index}" / name)


def in_flight(index: int) -> int:
    """Count the reads and writes that the kernel waits for, including those not sent yet."""
    return sum(map(int, (attribute(index, "inflight") or "").split()))


def block_size(index: int) -> int:
    """Return the size of a logical block in bytes."""
    return int(queue_attribute(index, "logical_block_size") or SECTOR)


def queue_attribute(index: int, name: str) -> str | None:
    """Read a file of /sys/block/nbdN/queue; if it lists choices, return the current one."""
    text = read(_queue(index) / name)
    chosen = re.search(r"\[(\S+)\]", text or "")
    return chosen[1] if chosen else text


def queue_choices(index: int, name: str) -> list[str]:
    """Return the choices that such a file lists; empty if it lists none."""
    text = read(_queue(index) / name) or ""
    return re.sub(r"[][]", "", text).split() if "[" in text else []


def set_queue_attribute(index: int, name: str, value: str) -> None:
    """Write to such a file. Most writes block until no request is in flight.

    Raises:
        OSError: EINVAL if the kernel refuses the value.

    """
    (_queue(index) / name).write_text(value)


def _queue(index: int) -> Path:
    return SYS_BLOCK / f"nbd{index}/queue"


def is_read_only(index: int) -> bool:
    """Tell whether the kernel refuses writes."""
    return read(SYS_BLOCK / f"nbd{index}/ro") == "1"


def io_counters(index: int) -> list[int]:
    """Return the numbers of /sys/block/nbdN/stat (Documentation/block/stat.rst); [] without it."""
    return [int(number) for number in (attribute(index, "stat") or "").split()]


def partitions(index: int) -> list[str]:
    """Return the names of a device's partitions (``nbd0p1``)."""
    entries = (SYS_BLOCK / f"nbd{index}").glob(f"nbd{index}p*")
    return sorted((entry.name for entry in entries), key=lambda name: (len(name), name))


def partition_attribute(index: int, name: str, attribute: str) -> str | None:
    """Read a file of a partition (``nbd0p1``); ``start`` and ``size`` are in 512-byte sectors."""
    return read(SYS_BLOCK / f"nbd{index}" / name / attribute)


def process_of(thread: int) -> tuple[int, str] | None:
    """Return the process id and name of a thread; None if it has ended or is not visible."""
    status = read(PROC / str(thread) / "status")
    if status is None:
        return None
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return int(fields["Tgid"]), fields["Name"]


def is_kernel_thread(thread: int | str) -> bool:
    """Tell whether a thread is a kernel thread, and not a process that only has such a name.

    Any process can take any name (PR_SET_NAME). Kernel threads have a flag that no other thread has
    (PF_KTHREAD of include/linux/sched.h; the ninth field of /proc/PID/stat).
    """
    fields = (read(PROC / str(thread) / "stat") or "").rpartition(")")[2].split()
    return len(fields) > 6 and bool(int(fields[6]) & PF_KTHREAD)


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


def directories(index: int, names: Collection[str] | None = None) -> list[Path]:
    """Return the directories in /sys of a device and its partitions.

    Args:
        index: N of /dev/nbdN.
        names: only of these (``nbd0``, ``nbd0p1``); None for all.

    """
    whole = SYS_BLOCK / f"nbd{index}"
    every = [whole, *(whole / name for name in partitions(index))]
    return [path for path in every if names is None or path.name in names]


def processes() -> Iterator[Path]:
    """Yield the directories in /proc of all visible processes, kernel threads included."""
    return (entry for entry in PROC.iterdir() if entry.name.isdigit())
