"""The status of a device, as seen from outside: is it alive, is it free, who keeps it busy.

The file ``pid`` in /sys does not tell whether a device has a server. It stays until the last user
has closed a device whose server is long gone; and of a device that was attached by netlink it names
the thread that sent CONNECT, which may have ended while the device lives.

The kernel's receiving threads do tell. One runs for each connection of a device, from attaching
until the connection ends, and its name contains the device: ``kworker/u8:1+nbd0-recv``, with a
minus once it has ended (recv_work in drivers/block/nbd.c, wq_worker_comm in kernel/workqueue.c).
Since any process may take such a name, it also has to be a kernel thread. In a container with
process ids of its own, kernel threads are not visible.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum

from ..errors import DeviceBusyError
from ..protocol.constants import TransmissionFlag
from . import locks, sysfs, users

_RECEIVER = re.compile(rb"\+k?nbd(\d+)-recv$")  # "knbd" before Linux 5.14
_KTHREADD = "2"  # the process id of the parent of all kernel threads


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
    """Neither the thread that attached it is visible, nor are the kernel's."""


def state(index: int) -> DeviceState:
    """Return the state of a device that is attached."""
    if count_receivers()[index]:
        return DeviceState.ALIVE
    has_process = locks.server(index) is not None
    if not sees_kernel_threads():
        return DeviceState.ALIVE if has_process else DeviceState.UNKNOWN
    return DeviceState.LOST if has_process or identity(index) is not None else DeviceState.DEAD


def count_receivers() -> Counter[int]:
    """Count the connections of each device from which the kernel receives."""
    return Counter(
        int(found[1])
        for thread, name in _thread_names()
        if (found := _RECEIVER.search(name)) and sysfs.is_kernel_thread(thread)
    )


def _thread_names() -> Iterator[tuple[str, bytes]]:
    # Not by pathlib, which takes five times as long: there may be thousands, and a mount waits.
    for entry in os.listdir(sysfs.PROC):
        if entry.isdigit():
            with suppress(OSError), open(f"{sysfs.PROC}/{entry}/comm", "rb", 0) as file:
                yield entry, file.read().strip()


def sees_kernel_threads() -> bool:
    """Tell whether this /proc shows kernel threads."""
    name = sysfs.read(sysfs.PROC / _KTHREADD / "comm")
    return name == "kthreadd" and sysfs.is_kernel_thread(_KTHREADD)


def receives_link_dead_events() -> bool:
    """Tell whether the kernel sends this process an event when a connection dies, if known.

    It sends them in the first network namespace only, the one of its own threads.
    """
    try:
        own, first = (os.readlink(sysfs.PROC / each / "ns/net") for each in ("self", _KTHREADD))
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
    return _flags_from_sysfs(index)


def _flags_from_sysfs(index: int) -> TransmissionFlag:
    queue = sysfs.queue_attribute
    shown = {
        TransmissionFlag.READ_ONLY: sysfs.is_read_only(index),
        TransmissionFlag.SEND_FLUSH: queue(index, "write_cache") == "write back",
        TransmissionFlag.SEND_FUA: queue(index, "fua") == "1",
        TransmissionFlag.ROTATIONAL: is_rotational(index),
        TransmissionFlag.SEND_TRIM: (queue(index, "discard_max_bytes") or "0") != "0",
        TransmissionFlag.SEND_WRITE_ZEROES: (
            (queue(index, "write_zeroes_max_bytes") or "0") != "0"
        ),
    }
    flags = TransmissionFlag.HAS_FLAGS
    for flag, is_set in shown.items():
        if is_set:
            flags |= flag
    return flags


def is_rotational(index: int) -> bool:
    """Tell whether the kernel treats a device as a spinning disk."""
    return sysfs.queue_attribute(index, "rotational") == "1"


# Free or busy


def wait_until_free(index: int, seconds: float, server: int | None = None) -> bool:
    """Wait until a device is no longer attached. Blocks.

    Args:
        index: N of /dev/nbdN.
        seconds: the timeout.
        server: the thread that attached it (:func:`.sysfs.server_thread`): if another one has
            attached it since, it was free. None for any.

    Returns:
        False if it is still attached after ``seconds``.

    """
    deadline = time.monotonic() + seconds
    while not sysfs.is_free(index):
        if server is not None and sysfs.server_thread(index) not in (None, server):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(sysfs.POLL)
    return True


def busy_error(index: int, path: str) -> DeviceBusyError:
    """Make the error for a device that is in use, which names its users."""
    holders = users.users(index) or [users.UNKNOWN_USER]
    reason = f"the device is in use: {', '.join(holders)}"
    return DeviceBusyError(errno.EBUSY, reason, path, holders)


def refuse_if_unclaimed_users(index: int, path: str) -> None:
    """Check a device that has been claimed for users that claim nothing (loop devices, exports).

    One that begins to use it during the check is not found: the kernel allows that silently.

    Raises:
        DeviceBusyError: there are some.

    """
    if users.shared_users(index):
        raise busy_error(index, path)
