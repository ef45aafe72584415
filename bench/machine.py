"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import time
from pathlib import Path

from .pythons import available

PROGRAMS = {
    "fio": ("fio", "--version"),
    "nbdkit": ("nbdkit", "--version"),
    "qemu-nbd": ("qemu-nbd", "--version"),
    "C compiler": ("cc", "--version"),
}

_AWAITING = """
import asyncio, platform, time

async def inner():
    pass

async def outer():
    await inner()

async def main():
    best = float("inf")
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(20_000):
            await outer()
        best = min(best, time.perf_counter() - begin)
    return best / 20_000 * 1e9

nanoseconds = asyncio.run(main())
build = f"{platform.python_version()}, {platform.python_compiler()}"
print(f"{build}; {nanoseconds:.0f} ns to await a coroutine that awaits another")
"""


def describe() -> dict[str, str]:
    """Processor and kernel."""
    return {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} used",
        "kernel": f"Linux {platform.release()}",
    }


def describe_programs() -> dict[str, str]:
    """The versions of the programs, and how fast each interpreter is by itself."""
    return {name: _version(command) for name, command in PROGRAMS.items()} | {
        f"Python {python.version}": f"{found}{'' if python.is_optimized else '; without PGO'}"
        for python in available()
        if (found := _output((*python.command, "-c", _AWAITING)))
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
    output = _output(command)
    if output is None:
        return "none"
    found = re.search(r"\d+(\.\d+)+", output)
    return found[0] if found else "unknown"


def _output(command: tuple[str, ...]) -> str | None:
    """What a program prints; None where there is no such program."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return None
    return done.stdout.strip()
