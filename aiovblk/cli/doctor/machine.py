"""Check the kernel's NBD driver, device nodes, the netlink family, udev and versions."""

from __future__ import annotations

import errno
import os
import platform
import stat
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from importlib import metadata
from pathlib import Path

from ...kernel import capabilities, netlink, sysfs
from ...kernel.capabilities import Capability
from ...threads import run_in_daemon_thread
from .findings import Finding, fail, info, ok, warn

MODULES = Path("/lib/modules")
DEV = Path("/dev")
RUN = Path("/run")

OPEN_TIMEOUT = 2.0
"""Seconds to open the node of a free device, which takes microseconds."""


def driver() -> Iterator[Finding]:
    """Check that the NBD driver is loaded and has free devices."""
    indices = sysfs.indices()
    if not indices:
        yield _missing_driver(platform.release())
        return
    free = sum(map(sysfs.is_free, indices))
    parameters = sysfs.SYS_BLOCK.parent / "module/nbd/parameters"
    max_part = sysfs.read(parameters / "max_part")
    found = f"loaded, {free} of {len(indices)} devices are free"
    if free:
        yield ok("driver", found)
    else:
        more = f"modprobe -r nbd && modprobe nbd nbds_max={2 * len(indices)}"
        yield warn("driver", f"{found}; unmount all of them first", more)
    if max_part == "0":
        yield info(
            "driver",
            "max_part is 0: partitions do not appear by themselves",
            "partprobe /dev/nbdN",
        )


def _missing_driver(release: str) -> Finding:
    directory = MODULES / release
    if has_module("nbd", release):
        if capabilities.has_capability(Capability.CAP_SYS_MODULE):
            return info("driver", "not loaded yet; a mount loads it", "modprobe nbd")
        return fail("driver", "not loaded", "sudo modprobe nbd")
    if not directory.is_dir():
        reason = f"not loaded, and {directory} does not exist: in a container load it on the host;"
        reason += " after a kernel upgrade reboot first; a kernel without modules may have no NBD, "
        return fail("driver", f"{reason}where only `aiovblk serve` works", "modprobe nbd")
    reason = f"this kernel ({release}) does not have it; some distributions package it separately"
    return fail("driver", reason, f"apt install linux-modules-extra-{release}")


def has_module(name: str, release: str) -> bool:
    """Return whether a kernel comes with a module, or has it built in."""
    lists = ("modules.dep", "modules.builtin")
    return any(f"/{name}.ko" in (sysfs.read(MODULES / release / each) or "") for each in lists)


def nodes() -> Iterator[Finding]:
    """Check that the devices have nodes in /dev, and that these may be opened."""
    indices = sysfs.indices()
    if not indices:
        return
    numbers = {index: sysfs.attribute(index, "dev") for index in indices}
    missing = [index for index in indices if node_number(index) != numbers[index]]
    if missing:
        first = f"/dev/nbd{missing[0]}"
        number = (numbers[missing[0]] or "43:0").replace(":", " ")
        text = f"{len(missing)} of {len(indices)} devices have no node here, such as {first}"
        finding = fail if len(missing) == len(indices) else warn
        yield finding(
            "nodes",
            f"{text} (docker run --device {first} adds it)",
            f"mknod {first} b {number}",
        )
    else:
        yield ok("nodes", f"/dev/nbd{indices[0]} to /dev/nbd{indices[-1]} exist")
    # The last that is free: a mount takes the first.
    for index in reversed(indices):
        if index not in missing and sysfs.is_free(index):
            yield from _opened(f"/dev/nbd{index}")
            return


def node_number(index: int) -> str | None:
    """Return MAJOR:MINOR of the block device at a node; None if there is no such node."""
    try:
        status = os.stat(DEV / f"nbd{index}")
    except OSError:
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _opened(path: str) -> Iterator[Finding]:
    try:
        run_in_daemon_thread(_open, path).result(OPEN_TIMEOUT)
    except FutureTimeoutError:
        yield fail("nodes", f"opening {path} hangs", f"aiovblk unmount --force {path}")
    except PermissionError as exc:
        if exc.errno == errno.EACCES:
            yield info("nodes", f"{path}: no permission to open it (see its owner and mode)")
        else:
            rule = "docker run --device-cgroup-rule 'b 43:* rwm'"
            yield fail("nodes", f"{path} may not be opened: the device cgroup forbids it", rule)
    except OSError as exc:
        yield fail("nodes", f"{path} cannot be opened: {exc.strerror}")


def _open(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))


def netlink_family() -> Iterator[Finding]:
    """Check that the NBD netlink family is available, which needs no nodes."""
    if not sysfs.indices():
        return  # the query would load the driver
    if netlink.is_available():
        yield ok("netlink", "the driver's family is available")
    else:
        yield warn(
            "netlink",
            "no NBD family in this network namespace (before Linux 6.12 only the initial one has"
            " it): no attaching by netlink, no forced disconnect of a device whose open() hangs",
            "nsenter --target 1 --net aiovblk ...",
        )


def udev() -> Iterator[Finding]:
    """Check whether udev runs, which maintains nodes and their permissions."""
    if (RUN / "udev/control").exists():
        yield ok("udev", "running; it probes devices that are added or changed")
    else:
        yield info("udev", "not running: nodes keep root's permissions, no /dev/disk/by-*")


def versions() -> Iterator[Finding]:
    """Report the versions of the kernel, Python and packages."""
    parts = [f"Linux {platform.release()}", f"Python {platform.python_version()}"]
    parts += [f"{name} {metadata.version(name)}" for name in ("uvloop", "anyio")]
    yield ok("versions", ", ".join(parts))
