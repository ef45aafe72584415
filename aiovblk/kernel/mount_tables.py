"""Find where file systems are mounted, in the mount tables of all namespaces.

To find the namespaces takes a look at each process. Many devices may be unmounted at once, each by
a thread that does this; so threads share a scan of /proc.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from . import procfs, sysfs


def mounted(directories: Collection[Path]) -> list[str]:
    """Return where file systems of these devices, directories in /sys, are mounted. Blocks."""
    numbers = {os.fsencode(sysfs.read(path / "dev") or "?") for path in directories}
    sources = {os.fsencode(f"/dev/{path.name}") for path in directories}
    found: dict[str, None] = {}
    for table in _scan.tables():
        for line in filter(None, table.split(b"\n")):  # a "\r" in a name ends no line
            before, _, after = line.partition(b" - ")
            fields = before.split(b" ")
            # btrfs shows a device number of its own, but names its source; XFS names the devices of
            # its log and its realtime section (logdev=, rtdev=).
            options = after.replace(b",", b" ").split(b" ")[1:]
            if fields[2] in numbers or sources & {each.rpartition(b"=")[2] for each in options}:
                found[unescape(fields[4])] = None
    return list(found)


def unescape(field: bytes) -> str:
    """Undo the octal escapes of /proc/*/mountinfo and /proc/swaps."""
    plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(plain)


class _SharedScan:
    """Read the mount tables once for all threads that wait to read them.

    Invariant: a thread gets what a scan has read that began after it had asked.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting = 0  # threads
        self._scanning = threading.Lock()
        self._begun = 0  # scans
        self._last = 0, list[bytes]()  # the number of a scan that has ended, and what it has read

    def tables(self) -> list[bytes]:
        """Return the mount table of each mount namespace that is visible. Blocks."""
        with self._guard:
            self._waiting += 1
            before = self._begun
        try:
            with self._scanning:
                number, tables = self._last
                if number <= before:
                    self._begun = number = self._begun + 1
                    tables = _read_tables()
                    self._last = number, tables
                return tables
        finally:
            with self._guard:
                self._waiting -= 1
                if not self._waiting:
                    self._last = 0, []  # thousands of containers have many megabytes of tables


def _read_tables() -> list[bytes]:
    tables: dict[str, bytes] = {}
    for process in (procfs.PROC / "self", *procfs.processes()):
        with suppress(OSError):
            namespace = os.readlink(process / "ns/mnt")
            if namespace not in tables:
                tables[namespace] = (process / "mountinfo").read_bytes()
    return list(tables.values())


_scan = _SharedScan()


def _forget_in_child() -> None:
    """Forget the scan of a thread that the child of a fork does not have."""
    global _scan
    _scan = _SharedScan()


os.register_at_fork(after_in_child=_forget_in_child)
