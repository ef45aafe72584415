"""The cache of Debian root directories with systemd and udev, for guests that are to boot them.

    CACHE/roots/trixie-1a2b3c4d    named after its packages, so that another list makes another one

They are made by mmdebstrap, appear complete or not at all, and are never written to by a guest.
"""

import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

from . import apt
from .console import VMError, require, say
from .kernels import cache_directory, locked

# The release that each kernel is the one of.
SUITES = {"6.1": "bookworm", "6.12": "trixie"}

PACKAGES = ["systemd", "systemd-sysv", "udev", "python3", "e2fsprogs", "fdisk", "kmod", "procps"]

# Nobody reads in there: half the size, and half the time.
WITHOUT = [f"path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")]


def get(series: str) -> Path:
    """Return the root directory of the release with the kernel `series`, made on first use.

    Raises:
        VMError: it cannot be made on this machine.
    """
    suite = SUITES[series]
    cache = cache_directory()
    root = cache / "roots" / f"{suite}-{zlib.crc32(' '.join(PACKAGES).encode()):08x}"
    if root.exists():
        return root
    require({"mmdebstrap": "mmdebstrap"})
    root.parent.mkdir(exist_ok=True)
    with locked(cache / "lock"):
        if not root.exists():
            for old in root.parent.glob(f"{suite}-*"):
                shutil.rmtree(old)
            build(suite, root)
    return root


def build(suite: str, root: Path) -> None:
    """Make the root directory.  The caller holds the lock."""
    say(f"making a root directory of Debian {suite}, which takes a minute or two")
    with tempfile.TemporaryDirectory(dir=root.parent, prefix="new-") as directory:
        new = Path(directory, "root")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        command += ["--aptopt=APT::Install-Recommends false"]
        command += [f"--dpkgopt={option}" for option in WITHOUT]
        done = subprocess.run(
            [*command, suite, new, *mirror(suite, Path(directory))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise VMError(f"mmdebstrap could not make Debian {suite}: {last}")
        new.rename(root)


def mirror(suite: str, directory: Path) -> list[Path]:
    """Return a file that names the mirror this machine uses; none where mmdebstrap knows best."""
    for suffix, text in apt.sources_for(suite):
        path = directory / f"mirror{suffix}"
        path.write_text(text)
        return [path]
    return []
