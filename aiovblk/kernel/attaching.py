"""Which /dev/nbdN, and how two processes do not end up with the same one.

Three checks, from the harmless to the final: a lock per index, which keeps programs that use this
library apart and goes away with the process; the device's ``pid`` in /sys, which shows everybody
else's attachments; and NBD_SET_SOCK, which the kernel grants to one only. The last is not used to
probe: it freezes the device's queue before it looks whose the device is (nbd_add_socket).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial

from .. import atfork
from ..errors import AttachError, DeviceBusyError, NBDUnavailableError
from ..protocol.constants import TransmissionFlag
from . import locks, netlink, orphans, status, sysfs
from .attachment import AttachConfig, Attachment
from .ioctl_attachment import IoctlAttachment
from .netlink_attachment import NetlinkAttachment, NetlinkMonitorThread

logger = logging.getLogger("aiovblk")

# Seconds for which a device that somebody is just letting go of is tried again: udev probes a
# device that was detached, and its old configuration lives until the last user closes it.
BUSY_RETRY_TIMEOUT = 2.0

_NAME = re.compile(r"nbd([0-9]{1,9})", re.ASCII)

# The driver has minor numbers for so many, with the 16 partitions that it allows each by default
# (MINORBITS - part_shift in nbd_init).
_MAX_DEVICES = 1 << 15

Make = Callable[[int, str, int, AttachConfig], Attachment]


def prefers_netlink() -> bool:
    """Whether devices are attached by netlink, where nobody says how.

    Blocks. It may load the driver.
    """
    return netlink.is_available()


def attach(
    path: str | None,
    terms: AttachConfig,
    *,
    by_netlink: bool | None = None,
    should_continue: Callable[[], bool] = lambda: True,
) -> Attachment:
    """Attach a free device; blocks, for a few seconds at most.

    Requests may come before it returns.

    Args:
        path: the node, or None for any device that is free.
        terms: what the kernel has to know.
        by_netlink: how, or else by ioctl; None for what :func:`prefers_netlink`.
        should_continue: asked before a device is attached; should nobody wait for it any more, none is.

    Raises:
        NBDUnavailableError: no driver, no such device, or none that is free.
        DeviceBusyError: ``path`` is taken, or somebody else attaches the same identity.
        AttachError: ``path`` is no NBD device, or the kernel refused.

    """
    link = _attach(path, terms, by_netlink, should_continue)
    if (other := _find_duplicate_identity(link.index, terms.identity)) is not None:
        # Whoever sees the other gives way; should both, neither serves what two must not.
        link.disconnect_kernel()
        link.close()
        link.wait_until_free(0)
        holder = f"{terms.identity!r} has just been attached at /dev/nbd{other}"
        raise DeviceBusyError(errno.EBUSY, holder, path, [holder])
    return link


def _find_duplicate_identity(index: int, identity: str | None) -> int | None:
    """Another device of the same identity than this one."""
    for other in sysfs.indices():
        if identity is not None and other != index and status.identity(other) == identity:
            return other
    return None


def _attach(
    path: str | None,
    terms: AttachConfig,
    by_netlink: bool | None,
    should_continue: Callable[[], bool],
) -> Attachment:
    if path is not None and not _NAME.fullmatch(os.path.basename(path)):
        resolve(path)  # so that no missing driver is blamed for what is no NBD device
    load_driver(path)
    if by_netlink is None:
        by_netlink = prefers_netlink()
        logger.debug("attaching by %s", "netlink" if by_netlink else "ioctl")
    make = _connect if by_netlink else IoctlAttachment
    _check_should_continue(should_continue)
    if path is None:
        # A container may have been given a few of the nodes only, and the kernel does not know.
        nodes = [f"/dev/nbd{index}" for index in sysfs.indices()]
        free_choice = by_netlink and all(map(os.path.exists, nodes))
        return _connect_any(terms) if free_choice else _attach_any(make, terms)
    index = resolve(path)
    deadline = time.monotonic() + BUSY_RETRY_TIMEOUT
    while True:
        try:
            return _attach_one(index, path, make, terms)
        except _DetachingError:
            if time.monotonic() > deadline:
                break
            time.sleep(sysfs.POLL)
        _check_should_continue(should_continue)
    if not orphans.free_if_unused(index):
        raise orphans.orphan_error(index, path)
    try:
        return _attach_one(index, path, make, terms)
    except _DetachingError as exc:  # a class of this file only
        raise DeviceBusyError(errno.EBUSY, exc.reason, path) from None


def _check_should_continue(should_continue: Callable[[], bool]) -> None:
    if not should_continue():
        raise AttachError(errno.ECANCELED, "nobody waits for the device any more")


def take_over_orphan(path: str | None, terms: AttachConfig) -> NetlinkAttachment | None:
    """Take over the device of an identity whose server is gone; blocks, for seconds at most.

    No request comes before :meth:`~aiovblk.kernel.attachment.Attachment.offer` has been called.

    Args:
        path: where it has to be, or None.
        terms: as it was attached; sockets there are none.

    Returns:
        None where there is no such device.

    Raises:
        DeviceBusyError: it has a server, or is another one than ``path``.
        AttachError: it differs from what it is to be served with.

    """
    index = find_by_identity(path, terms.identity)
    if index is None:
        return None
    node = f"/dev/nbd{index}"
    lock = _lock_of_lost(index, node)
    try:
        _check_same(index, node, terms)
        # Not before: the watchdog of its last server takes that for another server's coming.
        locks.write_owner(lock)
        return attachment_for_existing(index, node, lock, terms)
    except BaseException:
        atfork.close_protected(lock)
        raise


def find_by_identity(path: str | None, identity: str | None) -> int | None:
    """The device that was attached with an identity, if there is one.

    Raises:
        DeviceBusyError: it is not ``path``.

    """
    for index in sysfs.indices():
        if identity is not None and status.identity(index) == identity:
            if path is not None and resolve(path) != index:
                holder = f"{identity!r} is attached at /dev/nbd{index}"
                raise DeviceBusyError(errno.EBUSY, f"{holder}; mount it there", path, [holder])
            return index
    return None


def attachment_for_existing(
    index: int, path: str, lock: int, terms: AttachConfig
) -> NetlinkAttachment:
    """A link to a device that is attached already; its lock is ours."""
    return NetlinkAttachment(NetlinkMonitorThread(lambda: index, terms.survive), path, lock, terms)


def _lock_of_lost(index: int, path: str) -> int:
    """The lock of a device, once its server is gone, which may just be on its way out."""
    deadline = time.monotonic() + BUSY_RETRY_TIMEOUT
    while True:
        try:
            lock = _lock(index, path)
        except DeviceBusyError:
            if time.monotonic() > deadline:
                raise
        else:
            if not status.count_receivers()[index]:
                return lock
            atfork.close_protected(lock)
            if time.monotonic() > deadline:
                reason = "it still has a server, which does not use this library or this /run"
                raise DeviceBusyError(errno.EBUSY, reason, path, [reason])
        time.sleep(sysfs.POLL)


def _check_same(index: int, path: str, terms: AttachConfig) -> None:
    wanted = {
        "bytes": terms.block_size * terms.blocks,
        "bytes in a block": terms.block_size,
    }
    found = {"bytes": sysfs.size(index), "bytes in a block": sysfs.block_size(index)}
    for what, number in wanted.items():
        if found[what] != number:
            raise AttachError(
                errno.EINVAL,
                f"{terms.identity!r} is attached with {found[what]} {what}, and this device has"
                f" {number}; serve the same one, or `aiovblk unmount` it first",
                path,
            )
    if terms.flags & TransmissionFlag.READ_ONLY and not sysfs.is_read_only(index):
        reason = f"{terms.identity!r} is attached for writing, and this device cannot be written"
        raise AttachError(errno.EROFS, reason, path)


class _DetachingError(DeviceBusyError):
    """Nobody serves the device, but somebody has not let go of it yet."""


def load_driver(path: str | None = None) -> None:
    """Load the kernel's NBD module, unless its devices are there.

    Raises:
        NBDUnavailableError: it cannot be loaded.

    """
    if sysfs.indices():
        return
    program = shutil.which("modprobe", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    reason = "modprobe is not installed"
    if program is not None:
        try:
            done = subprocess.run(
                [program, "nbd"], capture_output=True, text=True, timeout=30, check=False
            )
            reason = done.stderr.strip() or f"modprobe nbd ended with status {done.returncode}"
        except subprocess.TimeoutExpired:
            reason = "modprobe nbd did not return in 30 s"
    if not sysfs.indices():
        raise NBDUnavailableError(
            errno.ENODEV,
            f"the kernel's NBD driver is not loaded and cannot be ({reason}); as root, on the "
            "machine itself and not in a container, run `modprobe nbd`",
            path,
        )


def resolve(path: str) -> int:
    """The index of the NBD device that a node stands for.

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


def _missing_reason(path: str) -> str:
    """Why there is no node of this name, and what makes one."""
    named = _NAME.fullmatch(os.path.basename(path))
    last = max(sysfs.indices(), default=-1)
    if named is None:
        return "no such device; NBD devices are called /dev/nbd0, /dev/nbd1 and so on"
    if last < 0:
        return "no such device; the kernel's NBD driver is not loaded (`modprobe nbd` loads it)"
    wanted = int(named[1])
    if wanted <= last:
        return f"no such node; in a container, make it with `mknod {path} b 43 MINOR`"
    more = f" (`modprobe -r nbd; modprobe nbd nbds_max={wanted + 1}` makes more)"
    return (
        f"no such device; the kernel has /dev/nbd0 to /dev/nbd{last}"
        f"{more if wanted < _MAX_DEVICES else ''}"
    )


def _attach_any(make: Make, terms: AttachConfig) -> Attachment:
    indices = sysfs.indices()
    missing = []
    for index in indices:
        path = f"/dev/nbd{index}"
        try:
            return _attach_one(index, path, make, terms)
        except DeviceBusyError:
            continue
        except NBDUnavailableError:
            missing.append(path)
    if missing:
        raise NBDUnavailableError(
            errno.ENOENT,
            f"no such node; in a container, make it with `mknod {missing[0]} b 43 MINOR`",
            missing[0],
        )
    raise NBDUnavailableError(
        errno.EBUSY,
        f"all {len(indices)} NBD devices are in use; `modprobe -r nbd` and "
        f"`modprobe nbd nbds_max={len(indices) * 2}` make more",
    )


def _attach_one(index: int, path: str, make: Make, terms: AttachConfig) -> Attachment:
    lock = _lock(index, path)
    if not sysfs.is_free(index):
        atfork.close_protected(lock)  # before anybody is named: this process does not serve it
        raise _busy_error(index, path)
    try:
        locks.write_owner(lock)
        return make(index, path, lock, terms)
    except BaseException as exc:
        locks.clear_owner(lock)
        atfork.close_protected(lock)
        if isinstance(exc, OSError) and not isinstance(exc, AttachError):
            raise _as_attach_error(exc, index, path) from exc
        raise


def _connect(index: int, path: str, lock: int, terms: AttachConfig) -> Attachment:
    if not os.path.exists(path):  # it would be attached, and could not be opened
        raise FileNotFoundError(errno.ENOENT, "no such device node", path)
    return NetlinkAttachment(_start_monitor(index, terms), path, lock, terms)


def _connect_any(terms: AttachConfig) -> Attachment:
    try:
        anchor = _start_monitor(None, terms)
    except OSError as exc:
        if isinstance(exc, AttachError):
            raise
        raise _as_attach_error(exc, -1, None) from exc
    path = f"/dev/nbd{anchor.index}"
    try:
        lock = _lock(anchor.index, path)
        locks.write_owner(lock)
    except AttachError:
        # Held for a moment by somebody who finds out just now that the device is taken.
        lock = atfork.open_protected(os.devnull)
    return NetlinkAttachment(anchor, path, lock, terms)


def _start_monitor(index: int | None, terms: AttachConfig) -> NetlinkMonitorThread:
    try:
        return NetlinkMonitorThread(partial(_connect_now, index, terms), terms.survive)
    except FileNotFoundError as exc:
        raise AttachError(
            errno.ENOENT,
            "the kernel's NBD netlink family cannot be reached (before Linux 6.12 it is in the"
            ' first network namespace only); attach="ioctl" works without',
        ) from exc


def _connect_now(index: int | None, terms: AttachConfig) -> int:
    return netlink.connect(
        index,
        terms.sockets,
        size=terms.block_size * terms.blocks,
        block_size=terms.block_size,
        flags=terms.flags,
        timeout=terms.timeout,
        dead_conn_timeout=terms.dead_conn_timeout,
        identity=terms.identity,
    )


def _lock(index: int, path: str) -> int:
    try:
        return locks.acquire(index)
    except BlockingIOError:
        raise _busy_error(index, path) from None
    except PermissionError as exc:
        raise _as_attach_error(exc, index, path) from exc


def _busy_error(index: int, path: str) -> DeviceBusyError:
    """Why a device cannot be attached."""
    process = locks.server(index)
    if process is None:
        return _DetachingError(errno.EBUSY, "the device is just being attached or detached", path)
    holder = f"served by process {process[0]} ({process[1]})"
    return DeviceBusyError(
        errno.EBUSY, f"already attached, {holder}; choose another or unmount it", path, [holder]
    )


def _as_attach_error(exc: OSError, index: int, path: str | None) -> AttachError:
    """The same error, with what its user can do about it."""
    if exc.errno == errno.EBUSY and path is not None:
        return _busy_error(index, path)
    if exc.errno in (errno.EPERM, errno.EACCES):
        return AttachError(
            exc.errno,
            "attaching a device takes CAP_SYS_ADMIN in the initial user namespace: run as root",
            path,
        )
    if exc.errno == errno.ENOENT:
        return NBDUnavailableError(errno.ENOENT, "no such device node", path)
    return AttachError(exc.errno or errno.EIO, exc.strerror or str(exc), path)
