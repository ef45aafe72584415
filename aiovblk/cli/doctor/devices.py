"""The devices that are attached, and programs that wait for them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ...kernel import status, sysfs, users
from ...kernel.status import DeviceState
from .findings import Finding, fail, info, ok, warn

RECHECK_DELAY = 0.5
"""Seconds after which a task is stuck that still waits; most wait for milliseconds."""

_KERNEL_THREAD = 0x00200000  # PF_KTHREAD of include/linux/sched.h

# Functions in which a task waits to open a block device that somebody else is opening.
_OPENING = re.compile(r"blkdev_open|bdev_open|blkdev_get|bdev_disk_changed")


def attached() -> Iterator[Finding]:
    """Devices, and whether they are served."""
    indices = [index for index in sysfs.indices() if not sysfs.is_free(index)]
    for index in indices:
        yield _device(index)
    if not indices:
        yield ok("devices", "none is attached")


def _device(index: int) -> Finding:
    path = f"/dev/nbd{index}"
    used = ", ".join(users.users(index))
    by = f", {used}" if used else ""
    force = f"aiovblk unmount --force {path}"
    match status.state(index):
        case DeviceState.ALIVE:
            return ok("devices", f"{path} is served")
        case DeviceState.LOST:
            name = status.identity(index)
            whose = f"a server that knows it as {name!r} may" if name else "its server may"
            lost = f"{path} has no connection; {whose} come back, or is given up by force{by}"
            return warn("devices", lost, force)
        case DeviceState.UNKNOWN:
            return info("devices", f"{path}: whether it is served cannot be told from here{by}")
        case DeviceState.DEAD:
            return fail("devices", f"{path} is a zombie: its server is gone{by}", fix(index))


def zombies() -> list[int]:
    """The devices that have no server any more."""
    return [
        index
        for index in sysfs.indices()
        if not sysfs.is_free(index) and status.state(index) is DeviceState.DEAD
    ]


def fix(index: int) -> str:
    """The command that frees a device without a server."""
    points = users.mount_points(index)
    unmount = "".join(f"umount {point}; " for point in points)
    return f"{unmount}aiovblk doctor --clean"


def hung_tasks() -> Iterator[Finding]:
    """Programs that wait in the kernel for a device, and cannot be killed."""
    waiting = set(_uninterruptible())
    if waiting:
        time.sleep(RECHECK_DELAY)
        waiting &= set(_uninterruptible())
    found = False
    for task in sorted(waiting):
        where = _waits_for(task)
        if where is not None:
            found = True
            name = sysfs.read(task / "comm")
            device = where if where.startswith("/dev/") else "/dev/nbdN"
            yield warn(
                "stuck",
                f"task {task.name} ({name}) waits for {where}; if its server never answers, only"
                " force ends that",
                f"aiovblk unmount --force {device}",
            )
    if not found:
        yield ok("stuck", "no program waits for a device")


def _uninterruptible() -> Iterator[Path]:
    """Tasks in state D, but those of the kernel."""
    for process in sysfs.processes():
        with suppress(OSError):
            for task in (process / "task").iterdir():
                fields = (sysfs.read(task / "stat") or "").rpartition(")")[2].split()
                if fields and fields[0] == "D" and not int(fields[6]) & _KERNEL_THREAD:
                    yield task


def _waits_for(task: Path) -> str | None:
    """The device that a task waits for, or what else it does with one; None for neither."""
    for index in sysfs.indices():
        if not sysfs.is_free(index) and _uses(task, index):
            return f"/dev/nbd{index}"
    stack = sysfs.read(task / "stack") or ""  # root only
    if "[nbd]" in stack:
        return "an NBD device"
    if _OPENING.search(stack):
        return "a block device to open"
    return None


def _uses(task: Path, index: int) -> bool:
    nodes = tuple(f"/dev/{name}" for name in (f"nbd{index}", *sysfs.partitions(index)))
    below = tuple(f"{point.rstrip('/')}/" for point in users.mount_points(index))
    with suppress(OSError):
        for link in (task / "cwd", *(task / "fd").iterdir()):
            with suppress(OSError):
                target = os.readlink(link)
                if target in nodes or f"{target}/".startswith(below):
                    return True
    return False
