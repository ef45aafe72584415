"""Build the initramfs: busybox, guest/init and the modules that reach the host's root."""

import re
import subprocess
from pathlib import Path

from .console import VMError, find_program
from .kernels import Kernel

# For the serial ports and entropy, the host's files, and the layer that catches writes to them.
MODULES = ("virtio_pci", "virtio_console", "virtio_rng", "9pnet_virtio", "9p", "overlay")

DIRECTORY, EXECUTABLE, FILE = 0o040755, 0o100755, 0o100644


class Archive:
    """A writer of cpio's newc format (the kernel's Documentation/driver-api/early-userspace)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, name: str, mode: int, data: bytes = b"") -> None:
        """Append one entry, owned by root."""
        path = name.encode() + b"\0"
        inode = len(self._parts) + 1
        numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
        self._parts.append(padded(header) + padded(data))

    def finish(self) -> bytes:
        """Return the archive with its end mark."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def padded(data: bytes) -> bytes:
    """Return `data` followed by zeroes up to a multiple of 4 bytes."""
    return data + bytes(-len(data) % 4)


def build(kernel: Kernel) -> bytes:
    """Return the initramfs for `kernel`.

    It is made anew for each run, in some 50 ms, so that no cache can hold an old init.
    """
    archive = Archive()
    for name in ("bin", "dev", "proc", "sys", "modules", "lower", "upper", "root"):
        archive.add(name, DIRECTORY)
    archive.add("init", EXECUTABLE, (Path(__file__).parent / "guest" / "init").read_bytes())
    archive.add("bin/busybox", EXECUTABLE, Path(find_program("busybox") or "").read_bytes())
    modules = load_order(kernel)
    for module in modules:
        archive.add(f"modules/{module.name}", FILE, module.read_bytes())
    archive.add("modules/order", FILE, "\n".join(module.name for module in modules).encode())
    return archive.finish()


def load_order(kernel: Kernel) -> list[Path]:
    """Return the files of MODULES and all that they depend on, each after its dependencies."""
    modprobe = [
        find_program("modprobe") or "modprobe",
        "-d",
        f"{kernel.home}",
        "-S",
        kernel.release,
    ]
    order: dict[Path, None] = {}
    for module in MODULES:
        command = [*modprobe, "--show-depends", module]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise VMError(f"kernel {kernel.release} has no module {module}; it cannot be used here")
        # A module that is built in has a line too, but no file.
        for path in re.findall(r"^insmod (\S+)", done.stdout, re.MULTILINE):
            order[Path(path)] = None
    return list(order)
