"""The status of a device, as seen from outside: who serves it, is it alive, how was it attached.

The file ``pid`` in /sys does not show whether a device has a server. It stays until the last user
has closed a device whose server is long gone; and of a device that was attached by netlink it names
the thread that sent CONNECT, which may have ended while the device lives.

The kernel's receiving threads show it. One runs for each connection of a device, from attaching
until the connection ends, and its name contains the device: ``kworker/u8:1+nbd0-recv``, with a
minus once it has ended (recv_work in drivers/block/nbd.c, wq_worker_comm in kernel/workqueue.c).
Since any process may take such a name, it also has to be a kernel thread. In a container with
process ids of its own, kernel threads are not visible.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum

from ..protocol.constants import TransmissionFlag
from . import locks, procfs, sysfs
from .procfs import is_kernel_thread, process_of
from .sysfs import Disk

_RECEIVER = re.compile(rb"\+k?nbd(\d+)-recv$")  # "knbd" before Linux 5.14
_KTHREADD = "2"  # the process id of the parent of all kernel threads


# Who serves it


def server(index: int) -> tuple[int, str] | None:
    """Return the id and name of the process that serves a device; None if none can be seen.

    That is the process that attached it, or that has taken it over since.
    """
    thread = sysfs.server_thread(index)
    if thread is None:
        return None
    return process_of(thread) or holder(index)


def holder(disk: Disk) -> tuple[int, str] | None:
    """Return the id and name of the process that has the lock of a device; None if it is free."""
    try:
        lock = os.open(locks.file(disk), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        process = locks.owner_token(lock).partition(":")[0]
        return process_of(int(process)) if process.isdigit() else None
    finally:
        os.close(lock)
    return None


# Alive or dead


class DeviceState(StrEnum):
    """Whether an attached device has a server."""

    ALIVE = "alive"
    """The kernel is connected with a server."""
    LOST = "lost"
    """No connection; but the process that attached it runs, or it has an identity, by which a
    server may take it over."""
    DEAD = "dead"
    """A zombie: no connection, and the process that attached it is gone."""
    UNKNOWN = "unknown"
    """Neither the thread that attached it is visible, nor are the kernel's; or the kernel's ublk
    driver does not let this process ask."""


def state(index: int) -> DeviceState:
    """Return the state of a device that is attached."""
    if count_receivers()[index]:
        return DeviceState.ALIVE
    has_process = server(index) is not None
    if not sees_kernel_threads():
        return DeviceState.ALIVE if has_process else DeviceState.UNKNOWN
    return DeviceState.LOST if has_process or identity(index) is not None else DeviceState.DEAD


def count_receivers() -> Counter[int]:
    """Count the connections of each device from which the kernel receives."""
    return Counter(
        int(found[1])
        for thread, name in _thread_names()
        if (found := _RECEIVER.search(name)) and is_kernel_thread(thread)
    )


def _thread_names() -> Iterator[tuple[str, bytes]]:
    # Not by pathlib, which takes five times as long: there may be thousands, and a mount waits.
    for entry in os.listdir(procfs.PROC):
        if entry.isdigit():
            with suppress(OSError), open(f"{procfs.PROC}/{entry}/comm", "rb", 0) as file:
                yield entry, file.read().strip()


def sees_kernel_threads() -> bool:
    """Return whether this /proc shows kernel threads."""
    name = sysfs.read(procfs.PROC / _KTHREADD / "comm")
    return name == "kthreadd" and is_kernel_thread(_KTHREADD)


def receives_link_dead_events() -> bool:
    """Return whether the kernel sends this process an event when a connection dies, if known.

    It sends them in the first network namespace only, the one of its own threads.
    """
    try:
        own, first = (os.readlink(procfs.PROC / each / "ns/net") for each in ("self", _KTHREADD))
    except OSError:
        return False
    return own == first and sees_kernel_threads()


# What it was attached with


def identity(index: int) -> str | None:
    """Return the identity with which a device was attached by netlink; None without one."""
    return sysfs.attribute(index, "backend") or None  # without an identity the file is empty


def transmission_flags(index: int) -> TransmissionFlag:
    """Return a device's transmission flags: from debugfs, else as its attributes show them.

    Only root may read debugfs. Since Linux 6.12 some of the attributes outlive a detach: ROTATIONAL
    and SEND_WRITE_ZEROES may have been set by an earlier server of the same device.
    """
    directory = sysfs.SYS_BLOCK.parent / f"kernel/debug/nbd/nbd{index}"
    if flags := re.match(r"Hex: 0x([0-9a-f]+)", sysfs.read(directory / "flags") or ""):
        return TransmissionFlag(int(flags[1], 16))
    return flags_from_sysfs(index)


def flags_from_sysfs(disk: Disk) -> TransmissionFlag:
    """Return what a device can do, as its attributes show it, in NBD's words."""
    queue = sysfs.queue_attribute
    shown = {
        TransmissionFlag.READ_ONLY: is_read_only(disk),
        TransmissionFlag.SEND_FLUSH: queue(disk, "write_cache") == "write back",
        TransmissionFlag.SEND_FUA: queue(disk, "fua") == "1",
        TransmissionFlag.ROTATIONAL: is_rotational(disk),
        TransmissionFlag.SEND_TRIM: (queue(disk, "discard_max_bytes") or "0") != "0",
        TransmissionFlag.SEND_WRITE_ZEROES: (queue(disk, "write_zeroes_max_bytes") or "0") != "0",
    }
    flags = TransmissionFlag.HAS_FLAGS
    for flag, is_set in shown.items():
        if is_set:
            flags |= flag
    return flags


def is_rotational(disk: Disk) -> bool:
    """Return whether the kernel treats a device as a spinning disk."""
    return sysfs.queue_attribute(disk, "rotational") == "1"


def is_read_only(disk: Disk) -> bool:
    """Return whether the kernel refuses writes."""
    return sysfs.attribute(disk, "ro") == "1"


def block_size(disk: Disk) -> int:
    """Return the size of a logical block in bytes."""
    return int(sysfs.queue_attribute(disk, "logical_block_size") or sysfs.SECTOR)


def in_flight(disk: Disk) -> int:
    """Count the reads and writes that the kernel waits for, including those not sent yet."""
    return sum(map(int, (sysfs.attribute(disk, "inflight") or "").split()))


def io_counters(disk: Disk) -> list[int]:
    """Return the numbers of a device's file ``stat``; [] without it.

    What they are says Documentation/block/stat.rst.
    """
    return [int(number) for number in (sysfs.attribute(disk, "stat") or "").split()]
