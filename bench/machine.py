"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import time
from pathlib import Path

VERSIONS = {
    "fio": ("fio", "--version"),
    "nbdkit": ("nbdkit", "--version"),
    "qemu-nbd": ("qemu-nbd", "--version"),
    "C compiler": ("cc", "--version"),
}


def describe() -> dict[str, str]:
    """Processor, kernel and the versions of the programs."""
    return {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} used",
        "kernel": f"Linux {platform.release()}",
        **{name: _version(command) for name, command in VERSIONS.items()},
    }


class Others:
    """Watches, from its making on, who else has the machine's processors."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._before = _others_seconds()

    def processors(self) -> float:
        """How many of them others had, on average; call it when all children have ended."""
        seconds = max(_others_seconds() - self._before, 0.0)
        return seconds / (time.monotonic() - self._begin)


def _others_seconds() -> float:
    """CPU time since the machine started that neither this process nor its children took."""
    ours = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    all_of_it = parse_busy(Path("/proc/stat").read_text()) / os.sysconf("SC_CLK_TCK")
    return all_of_it - sum(each.ru_utime + each.ru_stime for each in ours)


def parse_busy(stat: str) -> int:
    """Clock ticks, of all processors in /proc/stat, that were not idle."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.split()[1:9])
    return user + nice + system + irq + softirq + steal


def _processor() -> str:
    match = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()


def _version(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return "none"
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    return found[0] if found else "unknown"
