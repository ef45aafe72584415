"""Serving a disk although memory is short.

When memory runs out, the kernel has whoever asks for some wait until something is written to disk.
If that is the server of the disk, it waits for itself. Three things help: the flag
PR_SET_IO_FLUSHER, with which the kernel does not have a thread wait so (made for servers like this
one); memory that is locked, so that no page of the server has to be read back; and being spared
when the kernel kills processes to have memory again.

The flag is a thread's own. Threads and processes that it starts from then on inherit it, others of
the process do not have it. Locks are the process's, and not inherited; being spared is inherited by
processes that are started from then on.
"""

from __future__ import annotations

import errno
import logging
import resource
from collections.abc import Callable

from .. import libc
from . import sysfs
from .capabilities import Capability, has_capability

logger = logging.getLogger("aiovblk")

_libc = libc.Functions(prctl=["int", *["ulong"] * 4], mlockall=["int"])

PR_SET_IO_FLUSHER = 57  # include/uapi/linux/prctl.h, since Linux 5.6
MCL_CURRENT = 1  # include/uapi/asm-generic/mman.h
MCL_FUTURE = 2
OOM_SCORE_ADJ_MIN = -1000  # include/uapi/linux/oom.h: never killed


def protect_thread(*, level: int = logging.WARNING) -> None:
    """Keep this thread, and those that it starts from now on, from waiting for write-back.

    What is refused is logged at ``level``.
    """
    _attempt(_set_io_flusher, "PR_SET_IO_FLUSHER", Capability.CAP_SYS_RESOURCE, level)


def protect_process(*, level: int = logging.WARNING) -> None:
    """Lock this process's memory, now and in future, and spare it when memory runs out.

    Blocks until all of it is in memory. What is refused is logged at ``level``.
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
    (sysfs.PROC / "self/oom_score_adj").write_text(str(OOM_SCORE_ADJ_MIN))
