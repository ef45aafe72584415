"""The cache of unpacked kernels: one directory each, outside the repository.

    CACHE/kernels/6.1/vmlinux              what QEMU boots
    CACHE/kernels/6.1/lib/modules/RELEASE  the modules, with modprobe's indexes
    CACHE/apt/                             package lists of the private apt

A kernel's directory appears complete, by a rename, or not at all; a lock makes the second of two
concurrent runs wait for the first one's download.  Removing the cache is always safe.
"""

import fcntl
import lzma
import os
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import apt
from .console import VMError, find_program, require, say

SERIES = tuple(apt.ORIGINS)

# The modules that a test of a block device may want.  The rest (drivers for real hardware, most of
# the network) is four fifths of 330 MB, which would make unpacking and depmod slow.
MODULE_FILE = re.compile(
    r"""\./(?:usr/)?
        (lib/modules/[^/]+/
          (?: modules\.(?:builtin|builtin\.modinfo|order)$
            | kernel/(?:arch|block|crypto|fs|lib|mm)/.*
            | kernel/drivers/(?:block|char|dax|md|virtio)/.*
            | kernel/net/(?:9p|tls|unix)/.*
          )
        )""",
    re.VERBOSE,
)

# The second is where the packages of 7.3 have it.
IMAGE_FILE = re.compile(r"\./(?:boot/vmlinuz-[^/]+|usr/lib/modules/[^/]+/vmlinuz)$")


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel."""

    series: str
    home: Path

    @property
    def image(self) -> Path:
        """The file that QEMU boots."""
        return self.home / "vmlinux"

    @property
    def release(self) -> str:
        """The kernel's full name, as `uname -r` says it."""
        return next((self.home / "lib" / "modules").iterdir()).name

    @property
    def modules(self) -> Path:
        """The directory to be seen as /lib/modules/RELEASE in the guest."""
        return self.home / "lib" / "modules" / self.release


def cache_directory() -> Path:
    """Return the directory for everything that is kept between runs, made if needed."""
    general = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(os.environ.get("AIOVBLK_CACHE") or f"{general}/aiovblk").absolute()
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def get(series: str) -> Kernel:
    """Return the kernel `series` from the cache, fetching it on first use.

    Raises:
        VMError: it cannot be had on this machine.
    """
    cache = cache_directory()
    kernel = Kernel(series, cache / "kernels" / series)
    if kernel.home.exists():
        return kernel
    require({"kmod": "kmod", "dpkg-deb": "dpkg"})
    kernel.home.parent.mkdir(exist_ok=True)
    with locked(cache / "lock"):
        if not kernel.home.exists():
            build(kernel, cache)
    return kernel


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; the system releases it however this process ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(kernel: Kernel, cache: Path) -> None:
    """Fetch and unpack `kernel`.  The caller holds the lock."""
    for left_over in cache.glob("new-*"):  # of a run that was killed: no other process has the lock
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as directory:
        debs, home = Path(directory, "debs"), Path(directory, "kernel")
        debs.mkdir()
        packages = apt.fetch(kernel.series, cache / "apt", debs)
        for package in packages:
            unpack(package, home)
        extract_vmlinux(home / "vmlinuz", home / "vmlinux")
        release = Kernel(kernel.series, home).release
        # Builds of kmod differ in where they look below the directory that -b and -d name.
        (home / "usr").mkdir()
        (home / "usr" / "lib").symlink_to("../lib")
        subprocess.run([find_program("depmod") or "depmod", "-b", home, release], check=True)
        home.rename(kernel.home)
    say(f"unpacked kernel {release}")


def unpack(package: Path, home: Path) -> None:
    """Take the kernel image and the wanted modules out of a .deb, modules uncompressed."""
    with (
        subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
        ) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is None:
                continue
            if IMAGE_FILE.match(member.name):
                save(file, home / "vmlinuz")
            elif path := MODULE_FILE.match(member.name):
                save(file, home / path[1])


def save(file: IO[bytes], path: Path) -> None:
    """Write `file` to `path`, without the compression that the end of the name stands for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".xz", ".zst"):
        path.with_suffix("").write_bytes(decompress(file.read()))
    else:
        with path.open("wb") as out:
            shutil.copyfileobj(file, out)


def decompress(data: bytes) -> bytes:
    """Return what `data` holds, by its magic number; bytes after its end are ignored.

    Raises:
        VMError: the compression needs a program that is not here.
    """
    if data.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(data)
    if data.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        require({"zstd": "zstd"})
        # The exit status is of no use: zstd objects to the bytes after the end.
        return subprocess.run(["zstd", "-dqc"], input=data, capture_output=True).stdout
    return data


def extract_vmlinux(bzimage: Path, vmlinux: Path) -> None:
    """Put the ELF image inside `bzimage` into `vmlinux`, or `bzimage` itself if that fails.

    QEMU starts an ELF image by its PVH entry, which saves the guest from decompressing itself: 1 s
    (6.12) to 4 s (6.1) of every boot without KVM.  The offsets are those of the kernel's
    Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length.
    """
    image = bzimage.read_bytes()
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    try:
        elf = decompress(image[start : start + length])
    except VMError:
        elf = b""
    vmlinux.write_bytes(elf if elf.startswith(b"\x7fELF") else image)
    bzimage.unlink()
