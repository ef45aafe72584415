"""The kernel's NBD driver: load its module, and find the device that a node stands for.

When there is no such device, the error says why, and which command makes one.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess

from ..errors import AttachError, NBDUnavailableError
from . import sysfs

_NODE_NAME = re.compile(r"nbd([0-9]{1,9})", re.ASCII)

# The driver has minor numbers for so many, with the 16 partitions that it allows each by default
# (MINORBITS - part_shift in nbd_init).
_MAX_DEVICES = 1 << 15

_MODPROBE_TIMEOUT = 30  # seconds


def load_driver(path: str | None = None) -> None:
    """Load the kernel's NBD module, unless its devices exist already. Blocks.

    Args:
        path: the node that is wanted, or None for any. If it is not named like an NBD device, it is
            looked up first, so that the error does not blame a missing driver.

    Raises:
        NBDUnavailableError: the module cannot be loaded, or there is no such node.
        AttachError: ``path`` is no NBD device.

    """
    if path is not None and _index_in_name(path) is None:
        resolve(path)
    if sysfs.indices():
        return
    reason = _modprobe()
    if not sysfs.indices():
        raise NBDUnavailableError(
            errno.ENODEV,
            f"the kernel's NBD driver is not loaded and cannot be ({reason}); as root, on the "
            "machine itself and not in a container, run `modprobe nbd`",
            path,
        )


def _modprobe() -> str:
    """Run ``modprobe nbd``; return the reason for its failure, should it have failed."""
    program = shutil.which("modprobe", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        return "modprobe is not installed"
    try:
        done = subprocess.run(
            [program, "nbd"],
            capture_output=True,
            text=True,
            timeout=_MODPROBE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"modprobe nbd did not return in {_MODPROBE_TIMEOUT} s"
    return done.stderr.strip() or f"modprobe nbd ended with status {done.returncode}"


def resolve(path: str) -> int:
    """Return the index N of the NBD device that a node stands for.

    Raises:
        NBDUnavailableError: there is no such node.
        AttachError: it is something else.

    """
    try:
        return sysfs.index_of_node(path)
    except FileNotFoundError:
        raise NBDUnavailableError(errno.ENOENT, _missing_reason(path), path) from None
    except ValueError as exc:
        raise AttachError(errno.EINVAL, str(exc), path) from None


def missing_node_error(path: str) -> NBDUnavailableError:
    """Make the error for a device that the kernel has, but whose node is missing."""
    return NBDUnavailableError(errno.ENOENT, _missing_node_reason(path), path)


def _missing_node_reason(path: str) -> str:
    return f"no such node; in a container, make it with `mknod {path} b 43 MINOR`"


def _missing_reason(path: str) -> str:
    """Tell why there is no node of this name, and what makes one."""
    wanted = _index_in_name(path)
    last = max(sysfs.indices(), default=-1)
    if wanted is None:
        return "no such device; NBD devices are called /dev/nbd0, /dev/nbd1 and so on"
    if last < 0:
        return "no such device; the kernel's NBD driver is not loaded (`modprobe nbd` loads it)"
    if wanted <= last:
        return _missing_node_reason(path)
    reason = f"no such device; the kernel has /dev/nbd0 to /dev/nbd{last}"
    if wanted < _MAX_DEVICES:
        reason += f" (`modprobe -r nbd; modprobe nbd nbds_max={wanted + 1}` makes more)"
    return reason


def _index_in_name(path: str) -> int | None:
    """Return N if a path ends in nbdN."""
    name = _NODE_NAME.fullmatch(os.path.basename(path))
    return None if name is None else int(name[1])
