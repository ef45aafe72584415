"""A fake /sys and /proc, laid out as the kernel does it.

The fixture ``tree`` puts them in the place of the real ones (:mod:`aiovblk.kernel.sysfs`).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from aiovblk.kernel import procfs, sysfs

KERNEL_THREAD = 0x208040
"""The flags of a kernel thread in /proc/PID/stat, PF_KTHREAD among them."""


class KernelTree:
    """The files of /sys and /proc of a machine with some NBD devices.

    Attributes:
        block: /sys/block.
        proc: /proc.

    """

    def __init__(self, root: Path) -> None:
        self.block = root / "sys/block"
        self.proc = root / "proc"
        self.block.mkdir(parents=True)
        (root / "sys/dev/block").mkdir(parents=True)
        self.proc.mkdir()
        self.write(self.proc / "swaps", "Filename\tType\tSize\tUsed\tPriority\n")

    def write(self, path: Path, text: str | bytes) -> None:
        """Write a file; make its directory."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    def device(
        self, name: str, number: str, *, sectors: int = 0, thread: int | None = None
    ) -> Path:
        """Add a block device; return its directory.

        Args:
            name: ``nbd0``.
            number: ``MAJOR:MINOR``.
            sectors: its size in sectors of 512 bytes.
            thread: the thread that attached it; None if it is not attached.

        """
        directory = self.block / name
        self._number(directory, number)
        self.write(directory / "size", f"{sectors}\n")
        self.write(directory / "ro", "0\n")
        self.write(directory / "queue/logical_block_size", "512\n")
        (directory / "holders").mkdir()
        if thread is not None:
            self.write(directory / "pid", f"{thread}\n")
        return directory

    def remove(self, name: str, number: str) -> None:
        """Remove a block device."""
        (self.block.parent / "dev/block" / number).unlink()
        # In one step, as the kernel does it: another thread, which opens a file for writing, would
        # make one here.
        removed = self.block.parent / f"removed-{name}"
        (self.block / name).rename(removed)
        shutil.rmtree(removed)

    def partition(self, name: str, number: str) -> Path:
        """Add a partition (``nbd0p1``) to a device; return its directory."""
        directory = self.block / name.rpartition("p")[0] / name
        self._number(directory, number)
        (directory / "holders").mkdir()
        return directory

    def _number(self, directory: Path, number: str) -> None:
        self.write(directory / "dev", f"{number}\n")
        link = self.block.parent / "dev/block" / number
        link.symlink_to(os.path.relpath(directory, link.parent))

    def process(
        self,
        number: int,
        name: str | bytes,
        *,
        opens: tuple[str, ...] = (),
        namespace: int = 1,
        flags: int = 0x400040,
    ) -> Path:
        """Add a process; return its directory.

        Args:
            number: its id.
            name: what ``comm`` says.
            opens: the paths that it has open.
            namespace: of mounts.
            flags: in ``stat``; :data:`KERNEL_THREAD` for a kernel thread.

        """
        directory = self.proc / str(number)
        comm = name if isinstance(name, bytes) else name.encode()
        self.write(directory / "comm", comm + b"\n")
        self.write(
            directory / "status", b"Name:\t%b\nUmask:\t0022\nTgid:\t%d\nPid:\t1\n" % (comm, number)
        )
        self.write(directory / "stat", b"%d (%b) S 1 1 1 0 -1 %d 0 0 0 0\n" % (number, comm, flags))
        (directory / "fd").mkdir()
        for fd, path in enumerate(("/dev/null", *opens, "socket:[1]")):
            (directory / "fd" / str(fd)).symlink_to(path)
        (directory / "ns").mkdir()
        (directory / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        self.write(directory / "mountinfo", "")
        return directory

    def task(
        self, process: int, name: str, *, state: str = "S", flags: int = 0, stack: str = ""
    ) -> None:
        """Add the thread of a process, which shares its open files."""
        directory = self.proc / str(process) / "task" / str(process)
        self.write(directory / "comm", f"{name}\n")
        self.write(directory / "stat", f"{process} ({name}) {state} 1 1 1 0 -1 {flags} 0 0 0 0\n")
        self.write(directory / "stack", stack)
        (directory / "fd").symlink_to("../../fd")
        (directory / "cwd").symlink_to("/")

    def kernel_threads(self, *receiving: str) -> None:
        """Add kernel threads, among them a receiver for each of these devices (``nbd0``)."""
        self.process(2, "kthreadd", flags=KERNEL_THREAD)
        self.process(30, "kworker/R-nbd0-recv", flags=KERNEL_THREAD)
        for number, device in enumerate(receiving, 31):
            self.process(number, f"kworker/u8:{number}+{device}-recv", flags=KERNEL_THREAD)

    def mount(
        self, process: int, number: str, point: str, source: str, *, kind: str = "ext4"
    ) -> None:
        """Add a mount to the table of a process."""
        with (self.proc / str(process) / "mountinfo").open("a", encoding="utf-8") as table:
            table.write(f"36 25 {number} / {point} rw,relatime shared:1 - {kind} {source} rw\n")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelTree:
    """Put a fake /sys and /proc in the place of the real ones."""
    made = KernelTree(tmp_path)
    monkeypatch.setattr(sysfs, "SYS_BLOCK", made.block)
    monkeypatch.setattr(procfs, "PROC", made.proc)
    return made
