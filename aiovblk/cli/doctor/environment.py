"""Where this process runs, and what it may do there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ...kernel import capabilities, sysfs
from ...kernel.attachment import SOCKET_BUFFER
from ...kernel.capabilities import Capability
from .findings import Finding, fail, info, ok, warn

ROOT = Path("/")


def privileges() -> Iterator[Finding]:
    """Whether devices can be attached, and what goes without."""
    if capabilities.is_initial("user") is False:
        yield fail(
            "privileges",
            "not in the initial user namespace (a rootless container, `unshare -r`): the kernel"
            " refuses to attach here; root may on the host",
            "aiovblk mount ...",
        )
    elif not capabilities.has_capability(Capability.CAP_SYS_ADMIN):
        yield fail(
            "privileges",
            "CAP_SYS_ADMIN is missing, which attaching takes (a container: --cap-add SYS_ADMIN)",
            "sudo aiovblk mount ...",
        )
    else:
        yield ok("privileges", "devices can be attached")
    yield from _buffers()
    for capability in (Capability.CAP_SYS_RESOURCE, Capability.CAP_IPC_LOCK):
        if not capabilities.has_capability(capability):
            yield info("privileges", f"{capability.name} is missing, which --memory-safe takes")


def _buffers() -> Iterator[Finding]:
    most = sysfs.read(sysfs.PROC / "sys/net/core/wmem_max")  # not in every network namespace
    if (
        most
        and int(most) < SOCKET_BUFFER
        and not capabilities.has_capability(Capability.CAP_NET_ADMIN)
    ):
        yield warn(
            "privileges",
            f"CAP_NET_ADMIN is missing, so socket buffers have {most} bytes at most, and large"
            " requests take more turns",
            f"sysctl net.core.wmem_max={SOCKET_BUFFER}",
        )


def namespaces() -> Iterator[Finding]:
    """What of the machine does not show here."""
    hidden = {
        "pid": "who serves and uses devices cannot be told",
        "mnt": "file systems that others have mounted may not show",
        "net": "before Linux 6.12 NBD's netlink family is not here",
    }
    found = False
    for kind, consequence in hidden.items():
        if capabilities.is_initial(kind) is False:
            found = True
            yield warn("namespaces", f"not the host's {kind} namespace: {consequence}")
    if not found:
        yield ok("namespaces", "the host's, as far as can be seen")


def container() -> Iterator[Finding]:
    """What containers are in the way of."""
    kind = _container()
    if kind is not None:
        yield info(
            "container",
            f"this is one ({kind}): pausing it (docker pause) ends devices that are attached by"
            " ioctl, and nodes of partitions do not appear in it",
        )
    if os.statvfs(sysfs.SYS_BLOCK).f_flag & os.ST_RDONLY:
        yield warn(
            "container",
            "/sys is read-only, so requests keep the kernel's default size and read-ahead",
            "mount -o remount,rw /sys",
        )


def _container() -> str | None:
    if told := sysfs.read(ROOT / "run/systemd/container"):
        return told
    for name, kind in {".dockerenv": "docker", "run/.containerenv": "podman"}.items():
        if (ROOT / name).exists():
            return kind
    return None
