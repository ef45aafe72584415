"""Check this process's capabilities and namespaces: what privileges the kernel grants it."""

from __future__ import annotations

import os
from enum import IntEnum

from . import procfs, sysfs


class Capability(IntEnum):
    """The capabilities that something in this package needs (include/uapi/linux/capability.h)."""

    CAP_NET_ADMIN = 12
    CAP_IPC_LOCK = 14
    CAP_SYS_MODULE = 16
    CAP_SYS_ADMIN = 21
    CAP_SYS_RESOURCE = 24


# include/linux/proc_ns.h: PROC_USER_INIT_INO, PROC_PID_INIT_INO
_INITIAL_INODES = {"user": 0xEFFFFFFD, "pid": 0xEFFFFFFC}


def has_capability(capability: Capability) -> bool:
    """Return whether this process has a capability in the initial user namespace, as counts."""
    return is_initial("user") is not False and bool(_effective() >> capability & 1)


def _effective() -> int:
    """Return the bit mask of the effective capabilities; 0 without /proc."""
    for line in (sysfs.read(procfs.PROC / "self/status") or "").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def is_initial(kind: str) -> bool | None:
    """Return whether this process is in the initial namespace of a kind; None if unknown.

    Args:
        kind: ``user``, ``pid``, or another, which is compared with that of process 1: in a
            container that is the container's own.

    """
    own = _namespace("self", kind)
    if kind in _INITIAL_INODES:
        initial: str | None = f"{kind}:[{_INITIAL_INODES[kind]}]"
    else:
        initial = _namespace("1", kind)
    return None if own is None or initial is None else own == initial


def _namespace(process: str, kind: str) -> str | None:
    try:
        return os.readlink(procfs.PROC / process / "ns" / kind)
    except OSError:
        return None
