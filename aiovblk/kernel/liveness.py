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

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum

from . import locks, sysfs

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
