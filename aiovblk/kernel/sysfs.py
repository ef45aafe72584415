"""What /sys and /proc tell about NBD devices, without opening one.

Opening a node can wait for its server, and makes whoever does it one of its users. Reading these
files does neither.
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
PF_KTHREAD = 0x00200000
POLL = 0.002  # seconds between looks at /sys, which cannot be waited on


def read(path: Path) -> str | None:
    """What a file holds, without white space around it; None when it is not there.

    Also None for one that this process may not read.
    """
    # A device that is being detached right now answers ENODEV in place of ENOENT. The names of
    # processes are cut to 15 bytes, even within a character.
    try:
        return path.read_bytes().decode(errors="backslashreplace").strip()
    except OSError:
        return None


def indices() -> list[int]:
    """The numbers N of all nbdN that exist, in order."""
    names = (re.fullmatch(r"nbd(\d+)", entry.name) for entry in SYS_BLOCK.glob("nbd*"))
    return sorted(int(name[1]) for name in names if name)


def name_of(device_number: int) -> str | None:
    """The kernel's name of a block device (``nbd0``, ``nbd0p1``, ``sda``)."""
    number = f"{os.major(device_number)}:{os.minor(device_number)}"
    try:
        return os.path.basename(os.readlink(SYS_BLOCK.parent / "dev/block" / number))
    except OSError:
        return None


def server_thread(index: int) -> int | None:
    """The thread that attached a device, or None when the device is not attached.

    The file ``pid`` exists from attaching until the last user has let go; it holds a thread id.
    """
    text = read(SYS_BLOCK / f"nbd{index}/pid")
    return int(text) if text and text.isdigit() else None


def size(index: int) -> int:
    """Bytes; 0 for a device that is not attached."""
    return int(read(SYS_BLOCK / f"nbd{index}/size") or 0) * SECTOR


def is_free(index: int) -> bool:
    """Whether nobody serves a device. Somebody may still have its node open."""
    return server_thread(index) is None and size(index) == 0


def attribute(index: int, name: str) -> str | None:
    """A file of /sys/block/nbdN."""
    return read(SYS_BLOCK / f"nbd{index}" / name)


def in_flight(index: int) -> int:
    """How many reads and writes the kernel has sent, or is about to, and waits for."""
    return sum(map(int, (attribute(index, "inflight") or "").split()))


def block_size(index: int) -> int:
    """Bytes of a logical block."""
    return int(queue_attribute(index, "logical_block_size") or SECTOR)


def queue_attribute(index: int, name: str) -> str | None:
    """A file of /sys/block/nbdN/queue; of one that lists choices, the choice."""
    text = read(_queue(index) / name)
    chosen = re.search(r"\[(\S+)\]", text or "")
    return chosen[1] if chosen else text


def queue_choices(index: int, name: str) -> list[str]:
    """What such a file lists, when it does."""
    text = read(_queue(index) / name) or ""
    return re.sub(r"[][]", "", text).split() if "[" in text else []


def set_queue_attribute(index: int, name: str, value: str) -> None:
    """Write to such a file. Most wait until no request is in flight.

    Raises:
        OSError: EINVAL when the kernel refuses the value.

    """
    (_queue(index) / name).write_text(value)


def is_read_only(index: int) -> bool:
    """Whether the kernel refuses writes."""
    return read(SYS_BLOCK / f"nbd{index}/ro") == "1"


def io_counters(index: int) -> list[int]:
    """The numbers of /sys/block/nbdN/stat (Documentation/block/stat.rst); none when it is gone."""
    return [int(number) for number in (attribute(index, "stat") or "").split()]


def partitions(index: int) -> list[str]:
    """The names of a device's partitions (``nbd0p1``)."""
    entries = (SYS_BLOCK / f"nbd{index}").glob(f"nbd{index}p*")
    return sorted((entry.name for entry in entries), key=lambda name: (len(name), name))


def partition_attribute(index: int, name: str, attribute: str) -> str | None:
    """A file of a partition (``nbd0p1``); ``start`` and ``size`` are in sectors of 512 bytes."""
    return read(SYS_BLOCK / f"nbd{index}" / name / attribute)


def process_of(thread: int) -> tuple[int, str] | None:
    """The process id and name of a thread, or None when it has ended or cannot be seen."""
    status = read(PROC / str(thread) / "status")
    if status is None:
        return None
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return int(fields["Tgid"]), fields["Name"]


def is_kernel_thread(thread: int | str) -> bool:
    """Whether a thread is one of the kernel's own, and not one that only has such a name.

    Any process can give itself any name (PR_SET_NAME). The kernel's own threads are told by a flag
    that no other has (PF_KTHREAD of include/linux/sched.h; the ninth field of /proc/PID/stat).
    """
    fields = (read(PROC / str(thread) / "stat") or "").rpartition(")")[2].split()
    return len(fields) > 6 and bool(int(fields[6]) & PF_KTHREAD)


def index_of_node(path: str) -> int:
    """The index of the whole NBD device that a node stands for.

    Raises:
        FileNotFoundError: no such node.
        ValueError: it stands for something else; the message says what.

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


def _queue(index: int) -> Path:
    return SYS_BLOCK / f"nbd{index}/queue"


def directories(index: int, names: Collection[str] | None = None) -> list[Path]:
    """The directories of a device and its partitions; with ``names`` (``nbd0``) only of these."""
    whole = SYS_BLOCK / f"nbd{index}"
    every = [whole, *(whole / name for name in partitions(index))]
    return [path for path in every if names is None or path.name in names]


def processes() -> Iterator[Path]:
    """The folders of all processes that can be seen, the kernel's threads included."""
    return (entry for entry in PROC.iterdir() if entry.name.isdigit())
