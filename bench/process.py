"""What a process and its children took: CPU time and memory."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
_CPUCLOCK_SCHED = 2  # include/linux/posix-timers_types.h: user and system time, to the nanosecond


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its descendants, of all their threads, also of those that ended.

    It is the sum of ``utime`` and ``stime`` of /proc/PID/stat, which has it in hundredths of a
    second: too coarse for a short run.
    """
    return sum(time.clock_gettime(cpu_clock(each)) for each in tree(pid))


def cpu_clock(pid: int) -> int:
    """The clock of a process's CPU time, as clock_getcpuclockid(3) makes it."""
    return ~pid << 3 | _CPUCLOCK_SCHED


def memory_kib(pid: int, field: str) -> int:
    """A field of /proc/PID/status in KiB, of a process and its descendants: VmRSS, VmHWM."""
    return sum(parse_status((PROC / str(each) / "status").read_text(), field) for each in tree(pid))


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    children: list[str] = []
    for task in (PROC / str(pid) / "task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends right now
            children += (task / "children").read_text().split()
    return [pid, *(each for child in children for each in tree(int(child)))]


def parse_status(status: str, field: str) -> int:
    """A field of /proc/PID/status that has the unit kB."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if match is None:
        raise ValueError(f"no {field} in what is said of the process")
    return int(match[1])
