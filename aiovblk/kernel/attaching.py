"""Attach a device: choose a free /dev/nbdN, without a race between processes.

By netlink the kernel chooses one, where it may. Otherwise three checks, from the harmless to the
final:

1. a lock per index (:mod:`.locks`), which keeps programs that use this library apart, and is
   released when its process ends;
2. the device's ``pid`` in /sys, which shows what other programs have attached;
3. NBD_SET_SOCK, which the kernel grants to one process only, or netlink's CONNECT. NBD_SET_SOCK is
   not used to probe: it freezes the device's queue before it looks whose the device is
   (nbd_add_socket).

What an attach reports when it cannot be is in :mod:`.attach_errors`. Devices that are attached
already are in :mod:`.orphans` (no server is left) and :mod:`.takeover` (to go on with one).
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from functools import partial

from .. import atfork
from ..errors import AttachError, DeviceBusyError, NBDUnavailableError
from . import identities, locks, netlink, orphans, sysfs
from .attach_errors import (
    all_taken_error,
    as_attach_error,
    missing_node_error,
    no_family_error,
    taken_error,
)
from .attachment import AttachConfig, Attachment
from .driver import load_driver, resolve
from .ioctl_attachment import IoctlAttachment
from .monitor import NetlinkMonitorThread
from .netlink_attachment import NetlinkAttachment

logger = logging.getLogger("aiovblk")

BUSY_RETRY_TIMEOUT = 2.0
"""Seconds for which a device that is just being detached is retried: udev probes it once more, and
its old configuration lives until the last user closes it."""

Make = Callable[[int, str, int, AttachConfig], Attachment]
"""Attaches one device: called with its index, its path, its lock and its configuration."""


def prefers_netlink() -> bool:
    """Return whether devices are attached by netlink if the caller does not choose.

    Blocks. It may load the driver.
    """
    return netlink.is_available()


def attach(
    path: str | None,
    config: AttachConfig,
    *,
    by_netlink: bool | None = None,
    should_continue: Callable[[], bool] = lambda: True,
) -> Attachment:
    """Attach a free device. Blocks, for a few seconds at most.

    The kernel may send requests before this returns.

    Args:
        path: the node, or None for any free device.
        config: what the kernel has to know of the device.
        by_netlink: attach by netlink, or else by ioctl; None for what :func:`prefers_netlink` says.
        should_continue: called before each attempt; if it returns False, nothing is attached.

    Raises:
        NBDUnavailableError: no driver, no such device, or none that is free.
        DeviceBusyError: ``path`` is taken, or another process attaches the same identity.
        AttachError: ``path`` is no NBD device, the kernel refused, or ``should_continue`` did.

    """
    load_driver(path)
    if by_netlink is None:
        by_netlink = prefers_netlink()
        logger.debug("attaching by %s", "netlink" if by_netlink else "ioctl")
    make = _make_by_netlink if by_netlink else IoctlAttachment
    _check_should_continue(should_continue)
    if path is not None:
        attachment = _attach_path(path, config, make, should_continue)
    elif by_netlink and _all_nodes_exist():
        attachment = _attach_kernels_choice(config)
    else:
        attachment = _attach_first_free(config, make)
    if config.identity is not None:
        identities.refuse_duplicate(attachment, config.identity, path)
    return attachment


def _check_should_continue(should_continue: Callable[[], bool]) -> None:
    if not should_continue():
        raise AttachError(errno.ECANCELED, "the attach was cancelled")


def _attach_path(
    path: str, config: AttachConfig, make: Make, should_continue: Callable[[], bool]
) -> Attachment:
    """Attach one device; retry while it is being detached, then free it if it is an orphan."""
    index = resolve(path)
    deadline = time.monotonic() + BUSY_RETRY_TIMEOUT
    while True:
        try:
            return _attach_index(index, path, config, make)
        except DeviceBusyError as exc:
            if exc.holders:
                raise
            if time.monotonic() > deadline:
                break
            time.sleep(sysfs.POLL)
        _check_should_continue(should_continue)
    if not orphans.free_if_unused(index):
        raise orphans.orphan_error(index, path)
    return _attach_index(index, path, config, make)


def _attach_first_free(config: AttachConfig, make: Make) -> Attachment:
    """Try one device after another, in order."""
    indices = sysfs.indices()
    missing = []
    for index in indices:
        path = f"/dev/nbd{index}"
        try:
            return _attach_index(index, path, config, make)
        except DeviceBusyError:
            continue
        except NBDUnavailableError:
            missing.append(path)
    raise missing_node_error(missing[0]) if missing else all_taken_error(len(indices))


def _attach_index(index: int, path: str, config: AttachConfig, make: Make) -> Attachment:
    """Make one attempt at one device: take its lock, look whether it is free, attach it."""
    lock = lock_index(index, path)
    if not sysfs.is_free(index):
        atfork.close_protected(lock)  # before the error names the holder: it is not this process
        raise taken_error(index, path)
    try:
        locks.write_owner(lock)
        return make(index, path, lock, config)
    except BaseException as exc:
        locks.clear_owner(lock)
        atfork.close_protected(lock)
        if isinstance(exc, OSError) and not isinstance(exc, AttachError):
            raise as_attach_error(exc, index, path) from exc
        raise


def lock_index(index: int, path: str) -> int:
    """Take the lock of a device (:func:`.locks.acquire`), with errors for the user.

    Raises:
        DeviceBusyError: another process has it.
        AttachError: missing privileges, or others may write to the locks' directory.

    """
    try:
        return locks.acquire(index)
    except BlockingIOError:
        raise taken_error(index, path) from None
    except PermissionError as exc:
        raise as_attach_error(exc, index, path) from exc


# By netlink


def _make_by_netlink(index: int, path: str, lock: int, config: AttachConfig) -> Attachment:
    if not os.path.exists(path):  # it would be attached, and could not be opened
        raise FileNotFoundError(errno.ENOENT, "no such device node", path)
    return NetlinkAttachment(_start_monitor(index, config), path, lock, config)


def _all_nodes_exist() -> bool:
    """Return whether the kernel may choose: it cannot know that a container has few nodes."""
    return all(os.path.exists(f"/dev/nbd{index}") for index in sysfs.indices())


def _attach_kernels_choice(config: AttachConfig) -> Attachment:
    """Attach the free device that the kernel chooses, by netlink; its lock is taken after."""
    try:
        monitor = _start_monitor(None, config)
    except AttachError:
        raise
    except OSError as exc:
        raise as_attach_error(exc, -1, None) from exc
    path = f"/dev/nbd{monitor.index}"
    try:
        lock = lock_index(monitor.index, path)
        locks.write_owner(lock)
    except AttachError:
        # Held for a moment by a process that just now finds the device taken.
        lock = atfork.open_protected(os.devnull)
    return NetlinkAttachment(monitor, path, lock, config)


def _start_monitor(index: int | None, config: AttachConfig) -> NetlinkMonitorThread:
    """Attach by netlink, in a thread that lives as long as the attachment."""
    try:
        return NetlinkMonitorThread(partial(_send_connect, index, config), config.survive)
    except FileNotFoundError as exc:
        raise no_family_error() from exc


def _send_connect(index: int | None, config: AttachConfig) -> int:
    return netlink.connect(
        index,
        config.sockets,
        size=config.block_size * config.blocks,
        block_size=config.block_size,
        flags=config.flags,
        timeout=config.timeout,
        dead_conn_timeout=config.dead_conn_timeout,
        identity=config.identity,
    )
