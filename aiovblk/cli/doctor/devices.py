"""Check the attached devices, and find programs that hang waiting for them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ... import ublk
from ...kernel import procfs, status, sysfs, users
from ...kernel.status import DeviceState
from ...kernel.sysfs import Disk
from ..attached import attached_disks, ublk_number
from .findings import Finding, fail, info, ok, warn

RECHECK_DELAY = 0.5
"""Seconds after which a task that still waits is hung; most wait for milliseconds."""

_KERNEL_THREAD = 0x00200000  # PF_KTHREAD of include/linux/sched.h

# Kernel functions in which a task waits to open a block device that another task is opening.
_A_UBLK_DEVICE = "a ublk device"
_OPENING = re.compile(r"blkdev_open|bdev_open|blkdev_get|bdev_disk_changed")


def attached() -> Iterator[Finding]:
    """Report each attached device, and whether it is served."""
    disks = attached_disks()
    for disk in disks:
        number = ublk_number(disk)
        if number is not None:
            yield _ublk_device(number)
        elif isinstance(disk, int):
            yield _device(disk)
    if not disks:
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
            who = f"a server with --identity {name!r}" if name else "its server"
            lost = f"{path} has no connection; {who} may reconnect, or unmount it by force{by}"
            return warn("devices", lost, force)
        case DeviceState.UNKNOWN:
            return info("devices", f"{path}: whether it is served is not visible from here{by}")
        case DeviceState.DEAD:
            return fail("devices", f"{path} is a zombie: its server is gone{by}", fix(index))


def _ublk_device(number: int) -> Finding:
    path = ublk.node(number)
    used = ", ".join(users.users(ublk.disk_name(number)))
    by = f", {used}" if used else ""
    match ublk.status_of(number).state:
        case DeviceState.ALIVE:
            return ok("devices", f"{path} is served")
        case DeviceState.LOST:
            lost = f"{path} waits for another server, or unmount it by force{by}"
            return warn("devices", lost, f"aiovblk unmount --force {path}")
        case DeviceState.UNKNOWN:
            return info("devices", f"{path}: whether it is served is for its user and root to see")
        case DeviceState.DEAD:
            text = f"{path}: its server is gone, and what is left of the device takes its number"
            return warn("devices", text, "aiovblk doctor --clean")


def dead_ublk_devices() -> list[int]:
    """Return the numbers of the ublk devices whose server is gone."""
    dead = DeviceState.DEAD
    return [number for number in ublk.numbers() if ublk.status_of(number).state is dead]


def zombies() -> list[int]:
    """Return the indices of the NBD devices whose server is gone."""
    return [
        index
        for index in sysfs.indices()
        if not sysfs.is_free(index) and status.state(index) is DeviceState.DEAD
    ]


def fix(index: int) -> str:
    """Return the command that frees a device without a server."""
    points = users.mount_points(index)
    unmount = "".join(f"umount {point}; " for point in points)
    return f"{unmount}aiovblk doctor --clean"


def hung_tasks() -> Iterator[Finding]:
    """Report programs that wait in the kernel for a device and cannot be killed (hung tasks)."""
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
            any_device = "/dev/ublkbN" if where == _A_UBLK_DEVICE else "/dev/nbdN"
            device = where if where.startswith("/dev/") else any_device
            yield warn(
                "stuck",
                f"task {task.name} ({name}) waits for {where}; if its server never answers, only"
                " a forced unmount ends that",
                f"aiovblk unmount --force {device}",
            )
    if not found:
        yield ok("stuck", "no program waits for a device")


def _uninterruptible() -> Iterator[Path]:
    """Yield the tasks in state D (uninterruptible sleep), except threads of the kernel."""
    for process in procfs.processes():
        with suppress(OSError):
            for task in (process / "task").iterdir():
                fields = (sysfs.read(task / "stat") or "").rpartition(")")[2].split()
                if fields and fields[0] == "D" and not int(fields[6]) & _KERNEL_THREAD:
                    yield task


def _waits_for(task: Path) -> str | None:
    """Describe the device that a task waits for; None if it waits for no block device."""
    for disk in attached_disks():
        if _uses(task, disk):
            return f"/dev/{sysfs.disk_name(disk)}"
    stack = sysfs.read(task / "stack") or ""  # root only
    if "[nbd]" in stack:
        return "an NBD device"
    if "[ublk_drv]" in stack:
        return _A_UBLK_DEVICE
    if _OPENING.search(stack):
        return "a block device to open"
    return None


def _uses(task: Path, disk: Disk) -> bool:
    nodes = tuple(f"/dev/{name}" for name in (sysfs.disk_name(disk), *sysfs.partitions(disk)))
    below = tuple(f"{point.rstrip('/')}/" for point in users.mount_points(disk))
    with suppress(OSError):
        for link in (task / "cwd", *(task / "fd").iterdir()):
            with suppress(OSError):
                target = os.readlink(link)
                if target in nodes or f"{target}/".startswith(below):
                    return True
    return False
