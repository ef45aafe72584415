"""What /sys and /proc tell about NBD devices, without opening one.

Opening a node can wait for its server, and makes whoever does it one of its users. Reading these
files does neither.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from ..text import escaped

SYS_BLOCK = Path("/sys/block")
PROC = Path("/proc")
SECTOR = 512  # bytes: the unit of /sys/block/*/size, whatever the block size is
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


def mount_points(index: int, names: Collection[str] | None = None) -> list[str]:
    """Where the file systems of a device and of its partitions are mounted, in any namespace.

    With ``names`` (``nbd0``, ``nbd0p1``) only of these, as in what follows.
    """
    members = _members(index, names)
    numbers = {os.fsencode(number) for _, number in members}
    sources = {os.fsencode(f"/dev/{name}") for name, _ in members}
    found: dict[str, None] = {}
    for table in _mount_tables():
        for line in filter(None, table.split(b"\n")):  # a "\r" in a name ends no line
            before, _, after = line.partition(b" - ")
            fields, source = before.split(b" "), after.split(b" ")[1:2]
            # btrfs shows a device number of its own, but names its source.
            if fields[2] in numbers or set(source) & sources:
                found[_unescape(fields[4])] = None
    return list(found)


def holders(index: int, names: Collection[str] | None = None) -> list[str]:
    """Who uses a device or its partitions, in words that end a sentence about it."""
    return claims(index, names) or _openers_in_words(index, names)


def claims(index: int, names: Collection[str] | None = None) -> list[str]:
    """Who uses a device or its partitions exclusively, in such words."""
    found = [f"mounted at {escaped(point)}" for point in mount_points(index, names)]
    directories = _directories(index, names)
    nodes = {directory.name for directory in directories}
    for line in (read(PROC / "swaps") or "").splitlines()[1:]:
        node = _unescape(os.fsencode(line.split()[0]))
        if node.removeprefix("/dev/") in nodes:
            found.append(f"{node} is in use as swap")
    for directory in directories:
        for holder in sorted((directory / "holders").glob("*")):
            label = read(holder / "dm/name")
            found.append(f"held by {holder.name}" + (f" ({label})" if label else ""))
    return found


def holding_devices(index: int) -> list[str]:
    """The kernel's names of the devices that are made of this one or its partitions (``dm-0``)."""
    return sorted(
        holder.name
        for directory in _directories(index)
        for holder in (directory / "holders").glob("*")
    )


def _openers_in_words(index: int, names: Collection[str] | None) -> list[str]:
    processes = openers(index, names)
    others = [(process, name) for process, name in processes if process != os.getpid()]
    if processes and not others:
        return ["opened by this process"]
    return [opened_by(process, name) for process, name in others]


def opened_by(process: int, name: str) -> str:
    """How :func:`holders` tells of a process."""
    return f"opened by process {process} ({escaped(name)})"  # which it has chosen itself


def openers(index: int, names: Collection[str] | None = None) -> list[tuple[int, str]]:
    """Processes that have a device or one of its partitions open: their ids and names."""
    nodes = {f"/dev/{name}" for name, _ in _members(index, names)}
    found = []
    for process in processes():
        with suppress(OSError), os.scandir(process / "fd") as entries:
            if any(_target(entry.path) in nodes for entry in entries):
                found.append((int(process.name), read(process / "comm") or "?"))
    return found


def _target(link: str) -> str | None:
    try:
        return os.readlink(link)
    except OSError:  # the file was closed meanwhile
        return None


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


def _directories(index: int, names: Collection[str] | None = None) -> list[Path]:
    whole = SYS_BLOCK / f"nbd{index}"
    every = [whole, *(whole / name for name in partitions(index))]
    return [path for path in every if names is None or path.name in names]


def _members(index: int, names: Collection[str] | None = None) -> list[tuple[str, str]]:
    """Name and MAJOR:MINOR of a device and of its partitions."""
    return [(path.name, read(path / "dev") or "") for path in _directories(index, names)]


def processes() -> Iterator[Path]:
    """The folders of all processes that can be seen, the kernel's threads included."""
    return (entry for entry in PROC.iterdir() if entry.name.isdigit())


def _mount_tables() -> Iterator[bytes]:
    seen: set[str] = set()
    for process in (PROC / "self", *processes()):
        with suppress(OSError):
            namespace = os.readlink(process / "ns/mnt")
            if namespace not in seen:
                yield (process / "mountinfo").read_bytes()
                seen.add(namespace)


def _unescape(field: bytes) -> str:
    """Undo the octal escapes of /proc/*/mountinfo and /proc/swaps."""
    plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(plain)
