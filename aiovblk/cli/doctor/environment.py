"""Check privileges, namespaces and containers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ...kernel import capabilities, procfs, sysfs
from ...kernel.attachment import SOCKET_BUFFER
from ...kernel.capabilities import Capability
from .findings import Finding, fail, info, ok, warn

ROOT = Path("/")


def privileges() -> Iterator[Finding]:
    """Check the privileges to attach devices and to use all options."""
    if capabilities.is_initial("user") is False:
        yield fail(
            "privileges",
            "not in the initial user namespace (a rootless container, `unshare -r`): the kernel"
            " refuses to attach here; run it as root on the host",
            "aiovblk mount ...",
        )
    elif not capabilities.has_capability(Capability.CAP_SYS_ADMIN):
        yield fail(
            "privileges",
            "CAP_SYS_ADMIN is missing, which attaching needs (in a container: --cap-add SYS_ADMIN)",
            "sudo aiovblk mount ...",
        )
    else:
        yield ok("privileges", "devices can be attached")
    yield from _buffers()
    for capability in (Capability.CAP_SYS_RESOURCE, Capability.CAP_IPC_LOCK):
        if not capabilities.has_capability(capability):
            yield info("privileges", f"{capability.name} is missing, which --memory-safe needs")


def _buffers() -> Iterator[Finding]:
    limit = sysfs.read(procfs.PROC / "sys/net/core/wmem_max")  # not in every network namespace
    if (
        limit
        and int(limit) < SOCKET_BUFFER
        and not capabilities.has_capability(Capability.CAP_NET_ADMIN)
    ):
        yield warn(
            "privileges",
            f"CAP_NET_ADMIN is missing, so socket buffers have {limit} bytes at most, and large"
            " requests take more system calls",
            f"sysctl net.core.wmem_max={SOCKET_BUFFER}",
        )


def namespaces() -> Iterator[Finding]:
    """Report which namespaces hide a part of the machine."""
    hidden = {
        "pid": "servers and users of devices are not visible",
        "mnt": "file systems mounted elsewhere may not be visible",
        "net": "before Linux 6.12 it has no NBD netlink family",
    }
    found = False
    for kind, consequence in hidden.items():
        if capabilities.is_initial(kind) is False:
            found = True
            yield warn("namespaces", f"not the host's {kind} namespace: {consequence}")
    if not found:
        yield ok("namespaces", "the host's, as far as is visible")


def container() -> Iterator[Finding]:
    """Report the limits of a container."""
    kind = _container()
    if kind is not None:
        yield info(
            "container",
            f"running in one ({kind}): pausing it (docker pause) ends devices that are attached by"
            " ioctl, and nodes of partitions do not appear in it",
        )
    if os.statvfs(sysfs.SYS_BLOCK).f_flag & os.ST_RDONLY:
        yield warn(
            "container",
            "/sys is read-only, so requests keep the kernel's default size and read-ahead",
            "mount -o remount,rw /sys",
        )


def _container() -> str | None:
    if manager := sysfs.read(ROOT / "run/systemd/container"):
        return manager
    for name, kind in {".dockerenv": "docker", "run/.containerenv": "podman"}.items():
        if (ROOT / name).exists():
            return kind
    return None
