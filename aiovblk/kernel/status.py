"""Whether anybody serves a device, as far as that can be told from outside.

The file ``pid`` does not tell. It stays until the last user has let go of a device whose server is
long gone; and of a device that was attached by netlink it names the thread that sent CONNECT, which
may have ended while the device lives.

What tells is the kernel's receiving thread. One runs for each connection of a device, from
attaching until the connection ends, and its name says for which device: ``kworker/u8:1+nbd0-recv``,
with a minus when it has ended (recv_work in drivers/block/nbd.c, wq_worker_comm in
kernel/workqueue.c). Since any process may call itself so, it also has to be one of the kernel's. In
a container with process ids of its own the kernel's threads do not show.
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
_KTHREADD = "2"  # the process id of the parent of all threads of the kernel


class DeviceState(StrEnum):
    """What has become of an attached device."""

    ALIVE = "alive"
    """It has a server, with which the kernel is connected."""
    LOST = "lost"
    """It has no connection, but who attached it is there, or it has an identity by which a server
    may come back to it."""
    DEAD = "dead"
    """It has no connection, and who attached it is gone."""
    UNKNOWN = "unknown"
    """The thread that attached it is not to be seen, and neither are the kernel's."""


def state(index: int) -> DeviceState:
    """What has become of a device that is attached."""
    if count_receivers()[index]:
        return DeviceState.ALIVE
    is_there = locks.server(index) is not None
    if not sees_kernel_threads():
        return DeviceState.ALIVE if is_there else DeviceState.UNKNOWN
    return DeviceState.LOST if is_there or identity(index) is not None else DeviceState.DEAD


def count_receivers() -> Counter[int]:
    """How many connections each device has that the kernel receives from."""
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
    """Whether the kernel's threads show in this /proc."""
    name = sysfs.read(sysfs.PROC / _KTHREADD / "comm")
    return name == "kthreadd" and sysfs.is_kernel_thread(_KTHREADD)


def receives_link_dead_events() -> bool:
    """Whether the kernel tells this process when connections die, as far as can be seen.

    It tells the first network namespace only, in which its own threads are.
    """
    try:
        own, first = (os.readlink(sysfs.PROC / each / "ns/net") for each in ("self", _KTHREADD))
    except OSError:
        return False
    return own == first and sees_kernel_threads()


def identity(index: int) -> str | None:
    """What a server that attached a device by netlink named it, for one that comes back to it."""
    return sysfs.attribute(index, "backend") or None  # the file is there even if it has no name


def transmission_flags(index: int) -> TransmissionFlag:
    """The transmission flags: from debugfs, which only root may read, or from what they led to.

    Since Linux 6.12 some of the latter outlive a detach: ROTATIONAL and SEND_WRITE_ZEROES may have
    been meant for an earlier server of the same device.
    """
    directory = sysfs.SYS_BLOCK.parent / f"kernel/debug/nbd/nbd{index}"
    if told := re.match(r"Hex: 0x([0-9a-f]+)", sysfs.read(directory / "flags") or ""):
        return TransmissionFlag(int(told[1], 16))
    return _flags_from_sysfs(index)


def _flags_from_sysfs(index: int) -> TransmissionFlag:
    queue = sysfs.queue_attribute
    seen = {
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
    for flag, is_set in seen.items():
        if is_set:
            flags |= flag
    return flags


def is_rotational(index: int) -> bool:
    """Whether the kernel takes a device for a disk that spins."""
    return sysfs.queue_attribute(index, "rotational") == "1"


def wait_until_free(index: int, seconds: float, server: int | None = None) -> bool:
    """Wait until a device is no longer attached; false if it still is after ``seconds``.

    Args:
        index: of the device.
        seconds: for which to wait.
        server: the thread that attached it (:func:`.sysfs.server_thread`): if it has been attached
            by another one since, it was free. None for whoever it is.

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
    """The exception that names who uses a device that is claimed."""
    holders = users.users(index) or [users.UNKNOWN_USER]
    reason = f"the device is in use: {', '.join(holders)}"
    return DeviceBusyError(errno.EBUSY, reason, path, holders)


def refuse_if_unclaimed_users(index: int, path: str) -> None:
    """Look for those who use a device and claim nothing, once it has been claimed.

    (Whoever begins to while this looks is not found: the kernel lets him, and tells nobody.)

    Raises:
        DeviceBusyError: there are some.

    """
    if users.shared_users(index):
        raise busy_error(index, path)
