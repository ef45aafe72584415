"""The kernel's NBD driver: load its module, and find the device that a node stands for."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess

from ..errors import AttachError
from . import sysfs
from .attach_errors import index_in_name, missing_device_error, no_driver_error

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
    if path is not None and index_in_name(path) is None:
        resolve(path)
    if not sysfs.indices():
        reason = modprobe("nbd")
        if not sysfs.indices():
            raise no_driver_error(reason, path)


def modprobe(module: str) -> str:
    """Load a module of the kernel; return the reason for its failure, should it have failed."""
    program = shutil.which("modprobe", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        return "modprobe is not installed"
    try:
        done = subprocess.run(
            [program, module],
            capture_output=True,
            text=True,
            timeout=_MODPROBE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"modprobe {module} did not return in {_MODPROBE_TIMEOUT} s"
    return done.stderr.strip() or f"modprobe {module} ended with status {done.returncode}"


def resolve(path: str) -> int:
    """Return the index N of the NBD device that a node stands for.

    Raises:
        NBDUnavailableError: there is no such node.
        AttachError: it is something else.

    """
    try:
        return sysfs.index_of_node(path)
    except FileNotFoundError:
        raise missing_device_error(path) from None
    except ValueError as exc:
        raise AttachError(errno.EINVAL, str(exc), path) from None
