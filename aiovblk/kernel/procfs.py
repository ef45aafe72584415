"""Read what /proc shows of processes and threads, the kernel's among them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .sysfs import read

PROC = Path("/proc")
PF_KTHREAD = 0x00200000  # include/linux/sched.h


def processes() -> Iterator[Path]:
    """Yield the directories in /proc of all visible processes, kernel threads included."""
    return (entry for entry in PROC.iterdir() if entry.name.isdigit())


def process_of(thread: int) -> tuple[int, str] | None:
    """Return the process id and name of a thread; None if it has ended or is not visible."""
    status = read(PROC / str(thread) / "status")
    if status is None:
        return None
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return int(fields["Tgid"]), fields["Name"]


def is_stopped(process: int) -> bool:
    """Return whether a process is stopped, by a signal or a debugger (proc_pid_stat(5))."""
    fields = (read(PROC / str(process) / "stat") or "").rpartition(")")[2].split()
    return fields[:1] in (["T"], ["t"])


def is_kernel_thread(thread: int | str) -> bool:
    """Return whether a thread is a kernel thread, and not a process that only has such a name.

    Any process can take any name (PR_SET_NAME). Kernel threads have a flag that no other thread has
    (PF_KTHREAD of include/linux/sched.h; the ninth field of /proc/PID/stat).
    """
    fields = (read(PROC / str(thread) / "stat") or "").rpartition(")")[2].split()
    return len(fields) > 6 and bool(int(fields[6]) & PF_KTHREAD)
