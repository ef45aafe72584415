"""Find the users of a device in /sys and /proc: what has claimed it, what only has it open.

An exclusive open (O_EXCL) fails if a device is claimed: by a mounted file system, swap, device
mapper, md. It does not say by which; and there are users that claim nothing, and lose what they
have not written when the device goes: a loop device on it, and what exports it to other machines.

A file system that was unmounted lazily (``umount -l``) is in no mount table any more, but stays in
use until the last program has closed its files. Some kinds show in /sys/fs nevertheless.

Descriptions of users are phrases that end a sentence: "mounted at /mnt", "held by dm-0".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from .. import atfork
from ..errors import DeviceBusyError
from ..text import escape
from . import procfs, status, sysfs
from .mount_tables import mounted, unescape
from .sysfs import Disk

_MAX_DEPTH = 8  # levels of stacked devices; the kernel allows no cycles

# What exports a file or a block device to others, and which of its attributes names that: the
# kernel's NVMe target (drivers/nvme/target/configfs.c), its SCSI target (target_core_configfs.c),
# its USB mass storage (f_mass_storage.c). None of them has to claim what it exports.
_EXPORTS = {
    "an NVMe target": "nvmet/subsystems/*/namespaces/*/device_path",
    "a SCSI target": "target/core/*/*/udev_path",
    "a USB gadget": "usb_gadget/*/functions/mass_storage.*/lun.*/file",
}

# The file systems that have a directory in /sys/fs for each device that they live on.
_SHOWN_IN_SYS = {"ext4": "{}", "xfs": "{}", "f2fs": "{}", "btrfs": "*/devices/{}"}

UNKNOWN_USER = (
    "held by something that shows nowhere: a file system that was unmounted lazily (umount -l)"
    " while programs still use it, or that is mounted where this process cannot see it, or a"
    " program of another container"
)
"""The description of the user of a device that is claimed although no user is found."""


def users(disk: Disk, names: Collection[str] | None = None) -> list[str]:
    """Describe the users of a device or its partitions.

    Programs that merely have it open are named only if nothing else is found; its server never is.

    Args:
        disk: the device.
        names: look at these only (``nbd0``, ``nbd0p1``), here and in the other functions; None for
            the device and all its partitions.

    """
    return exclusive_users(disk, names) or _describe_openers(disk, names)


def exclusive_users(disk: Disk, names: Collection[str] | None = None) -> list[str]:
    """Describe the users that would lose data if a device or its partitions went away."""
    directories = _directories(disk, names)
    points = mount_points(disk, names)
    return [
        *(f"mounted at {escape(point)}" for point in points),
        *([] if points else _not_mounted(directories)),
        *_swaps(directories),
        *_held(directories, _MAX_DEPTH),
        *_exported(directories),
    ]


def shared_users(disk: Disk, names: Collection[str] | None = None) -> list[str]:
    """Describe those of :func:`exclusive_users` that claim nothing: loop devices, exports."""
    directories = _directories(disk, names)
    return [*_describe_loops(directories, _MAX_DEPTH), *_exported(directories)]


def busy_error(disk: Disk, path: str) -> DeviceBusyError:
    """Make the error for a device that is in use, which names its users."""
    holders = users(disk) or [UNKNOWN_USER]
    reason = f"the device is in use: {', '.join(holders)}"
    return DeviceBusyError(errno.EBUSY, reason, path, holders)


def refuse_if_unclaimed_users(disk: Disk, path: str) -> None:
    """Check a device that has been claimed for users that claim nothing (loop devices, exports).

    One that begins to use it during the check is not found: the kernel allows that silently.

    Raises:
        DeviceBusyError: there are some.

    """
    if shared_users(disk):
        raise busy_error(disk, path)


def mount_points(disk: Disk, names: Collection[str] | None = None) -> list[str]:
    """Return where file systems of a device and its partitions are mounted, in any namespace."""
    return mounted(_directories(disk, names))


def stacked_mount_points(disk: Disk) -> list[str]:
    """Return the mount points of a device and of all devices on top of it, from the top down."""
    points = [point for above in _above(disk) for point in mounted([above])]
    return list(dict.fromkeys([*points, *mount_points(disk)]))


def stacked_devices(disk: Disk) -> list[str]:
    """Return the kernel's names of all devices on top of this one, from the top down."""
    return [directory.name for directory in _above(disk)]


def holding_devices(disk: Disk) -> list[str]:
    """Return the kernel's names of the devices directly on it or its partitions (``dm-0``)."""
    directories = _directories(disk)
    names = [holder.name for directory in directories for holder in _holders_of(directory)]
    return sorted([*names, *(loop.name for loop in _loops(directories))])


def openers(disk: Disk, names: Collection[str] | None = None) -> list[tuple[int, str]]:
    """Return the ids and names of the processes that have a device or a partition open."""
    return [(process, name) for process, name, _ in _openers(disk, names)]


def opened_by(process: int, name: str) -> str:
    """Describe a process that has a device open, as :func:`users` does."""
    return f"opened by process {process} ({escape(name)})"  # a name that the process has chosen


def _openers(disk: Disk, names: Collection[str] | None) -> Iterator[tuple[int, str, list[int]]]:
    """Yield processes, their names, and their descriptors that are of the device."""
    nodes = {f"/dev/{directory.name}" for directory in _directories(disk, names)}
    for process in procfs.processes():
        with suppress(OSError), os.scandir(process / "fd") as entries:
            found = [int(entry.name) for entry in entries if _target(entry.path) in nodes]
            if found:
                yield int(process.name), sysfs.read(process / "comm") or "?", found


def _describe_openers(disk: Disk, names: Collection[str] | None) -> list[str]:
    server = status.server(disk) if isinstance(disk, int) else None
    others = []
    is_open_here = False
    for process, name, descriptors in _openers(disk, names):
        if process == os.getpid():
            is_open_here = not atfork.are_protected(descriptors)
        # A server that attached its device by ioctl has it open, once.
        elif (process, name) != server or len(descriptors) > 1:
            others.append(opened_by(process, name))
    return others or (["opened by this process"] if is_open_here else [])


def _target(link: str) -> str | None:
    try:
        # The node of a ublk device goes before its users do.
        return os.readlink(link).removesuffix(" (deleted)")
    except OSError:  # the file was closed meanwhile
        return None


def _directories(disk: Disk, names: Collection[str] | None = None) -> list[Path]:
    """Return the directories in /sys of a device and its partitions.

    Args:
        disk: the device.
        names: only of these (``nbd0``, ``nbd0p1``); None for all.

    """
    whole = sysfs.SYS_BLOCK / sysfs.disk_name(disk)
    every = [whole, *(whole / name for name in sysfs.partitions(disk))]
    return [path for path in every if names is None or path.name in names]


# Mounts and swap


def _not_mounted(directories: Collection[Path]) -> Iterator[str]:
    """Describe file systems that are in use although no mount table has them."""
    for directory in directories:
        for kind, pattern in _SHOWN_IN_SYS.items():
            if any((sysfs.SYS_BLOCK.parent / "fs" / kind).glob(pattern.format(directory.name))):
                yield (
                    f"held by a file system ({kind}) that is mounted nowhere to be seen: it was"
                    " unmounted lazily (umount -l) while programs still use it, or is mounted"
                    " in a namespace of its own"
                )


def _swaps(directories: Collection[Path]) -> Iterator[str]:
    nodes = {directory.name for directory in directories}
    for line in (sysfs.read(procfs.PROC / "swaps") or "").splitlines()[1:]:
        node = unescape(os.fsencode(line.split()[0]))
        if node.removeprefix("/dev/") in nodes:
            yield f"{node} is in use as swap"


# Devices on top, and exports


def _held(directories: Collection[Path], depth: int) -> Iterator[str]:
    for directory in directories:
        for holder in _holders_of(directory):
            name = sysfs.read(holder / "dm/name")
            yield _with_uses(f"held by {holder.name}", name, holder.name, depth)
        if (directory / "bcache").exists():
            yield "held by bcache"
    yield from _describe_loops(directories, depth)


def _describe_loops(directories: Collection[Path], depth: int) -> Iterator[str]:
    for loop in _loops(directories):
        yield _with_uses(f"held by {loop.name}", None, loop.name, depth)


def _with_uses(holder: str, label: str | None, device: str, depth: int) -> str:
    """Describe what holds a device, with its own users in parentheses."""
    uses = [label] if label else []
    if depth and (directory := sysfs.SYS_BLOCK / device).is_dir():
        above = [directory, *_partitions_of(directory)]
        uses += [f"mounted at {escape(point)}" for point in mounted(above)]
        uses += [*_swaps(above), *_held(above, depth - 1)]
    return f"{holder} ({'; '.join(uses)})" if uses else holder


def _above(disk: Disk) -> list[Path]:
    """Return the directories of all devices on top of one, from the top down."""
    found: dict[str, Path] = {}
    level = _directories(disk)
    for _ in range(_MAX_DEPTH):
        if not level:
            break  # to look for loop devices takes long where many devices are unmounted at once
        names = [holder.name for each in level for holder in _holders_of(each)]
        names += [loop.name for loop in _loops(level)]
        level = []
        for name in names:
            whole = sysfs.SYS_BLOCK / name
            level += [whole, *_partitions_of(whole)]
        for directory in level:
            found.pop(directory.name, None)  # found again, on a higher level
            found[directory.name] = directory
    return list(reversed(found.values()))


def _holders_of(directory: Path) -> list[Path]:
    return sorted((directory / "holders").glob("*"))


def _partitions_of(directory: Path) -> list[Path]:
    return [entry.parent for entry in sorted(directory.glob("*/partition"))]


def _loops(directories: Collection[Path]) -> list[Path]:
    """Return the loop devices on these devices; ``holders`` does not show them."""
    return [
        file.parent.parent
        for file in sorted(sysfs.SYS_BLOCK.glob("loop*/loop/backing_file"))
        if _is_one_of(sysfs.read(file), directories)
    ]


def _exported(directories: Collection[Path]) -> Iterator[str]:
    root = sysfs.SYS_BLOCK.parent / "kernel/config"
    for exporter, pattern in _EXPORTS.items():
        for file in sorted(root.glob(pattern)):
            if _is_one_of(sysfs.read(file), directories):
                yield f"exported by {exporter} ({file.parent.relative_to(root)})"


def _is_one_of(path: str | None, directories: Collection[Path]) -> bool:
    """Return whether a path is the node of one of these devices."""
    if not path or not path.startswith("/dev/"):
        return False  # stat() of a file elsewhere may block on the server of its file system
    if path.removeprefix("/dev/") in {directory.name for directory in directories}:
        return True
    number = _number_of(path)
    return any(sysfs.read(directory / "dev") == number for directory in directories)


def _number_of(node: str) -> str:
    try:
        number = os.stat(node).st_rdev
    except OSError:
        return ""
    return f"{os.major(number)}:{os.minor(number)}"
