"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
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
