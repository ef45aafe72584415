"""Protect a server from deadlock under memory pressure, and from the OOM killer (``memory_safe``).

When memory runs out, the kernel makes a thread that asks for some wait until dirty pages are
written to disk. If that thread serves the disk, it waits for itself. Three measures help:

* The flag PR_SET_IO_FLUSHER, made for servers like this one, exempts a thread from that wait.
* Locked memory never has to be read back from a swap device or a file.
* The process is exempt from the OOM killer.

The flag belongs to a thread. Threads and processes that it starts from then on inherit it; other
threads of the process do not have it. Memory locks belong to the process and are not inherited.
The exemption from the OOM killer is inherited by processes that are started from then on.
"""

from __future__ import annotations

import errno
import logging
import resource
from collections.abc import Callable

from .. import libc
from . import procfs
from .capabilities import Capability, has_capability

logger = logging.getLogger("aiovblk")

_libc = libc.Functions(prctl=["int", *["ulong"] * 4], mlockall=["int"])

PR_SET_IO_FLUSHER = 57  # include/uapi/linux/prctl.h, since Linux 5.6
MCL_CURRENT = 1  # include/uapi/asm-generic/mman.h
MCL_FUTURE = 2
OOM_SCORE_ADJ_MIN = -1000  # include/uapi/linux/oom.h: never killed


def protect_thread(*, level: int = logging.WARNING) -> None:
    """Exempt this thread, and those that it starts from now on, from waiting for write-back.

    Args:
        level: of the log message, if the kernel refuses.

    """
    _attempt(_set_io_flusher, "PR_SET_IO_FLUSHER", Capability.CAP_SYS_RESOURCE, level)


def protect_process(*, level: int = logging.WARNING) -> None:
    """Lock this process's memory, now and in future, and exempt it from the OOM killer.

    Blocks until all of it is in memory.

    Args:
        level: of the log messages, if the kernel refuses.

    """
    _attempt(_lock_memory, "mlockall", Capability.CAP_IPC_LOCK, level)
    _attempt(_disable_oom_kill, "oom_score_adj", Capability.CAP_SYS_RESOURCE, level)


def _attempt(step: Callable[[], None], name: str, capability: Capability, level: int) -> None:
    try:
        step()
    except OSError as exc:
        missing = "" if has_capability(capability) else f"; {capability.name} is missing"
        logger.log(level, "memory_safe without %s: %s%s", name, exc.strerror, missing)


def _set_io_flusher() -> None:
    if _libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0:
        raise libc.last_error()


def _lock_memory() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit != resource.RLIM_INFINITY and not has_capability(Capability.CAP_IPC_LOCK):
        # It might succeed; and then fail every allocation beyond the limit.
        raise OSError(errno.EPERM, f"RLIMIT_MEMLOCK is {limit} bytes")
    if _libc.mlockall(MCL_CURRENT | MCL_FUTURE) < 0:
        raise libc.last_error()


def _disable_oom_kill() -> None:
    (procfs.PROC / "self/oom_score_adj").write_text(str(OOM_SCORE_ADJ_MIN))
