"""The cache of Debian root directories.

Guests boot those with systemd and udev.  Others have a Python that this machine has not.

    CACHE/roots/trixie-1a2b3c4d    named after its packages, so that another list makes another one

They are made by mmdebstrap, appear complete or not at all, and are never written to by a guest.
"""

import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from . import apt
from .console import VMError, require, say
from .kernels import cache_directory, locked

# The release that each kernel runs with.
SUITES = {series: origin.release for series, origin in apt.ORIGINS.items()}

PACKAGES = ["systemd", "systemd-sysv", "udev", "python3", "e2fsprogs", "fdisk", "kmod", "procps"]

# Where Debian has each Python that may be missing here, and what an environment needs of it.
PYTHON_SUITES = {"3.11": "bookworm", "3.13": "trixie", "3.14": "forky"}
PYTHON_PACKAGES = ["python3", "python3-venv", "git", "procps", "mount"]

# It is not read: half the size, and half the time.
WITHOUT = [f"path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")]


def get(series: str) -> Path:
    """Return the root directory of the release with the kernel `series`, made on first use.

    Raises:
        VMError: it cannot be made on this machine.
    """
    return cached(SUITES[series], PACKAGES)


def with_python(version: str) -> Path:
    """Return a root directory whose python3 is of that version, made on first use.

    Raises:
        VMError: no Debian has it, or the directory cannot be made on this machine.
    """
    if version not in PYTHON_SUITES:
        raise VMError(f"no Debian has Python {version}, only {', '.join(PYTHON_SUITES)}")
    return cached(PYTHON_SUITES[version], PYTHON_PACKAGES)


def cached(suite: str, packages: Sequence[str]) -> Path:
    """Return the root directory of `suite` with `packages`, made on first use."""
    cache = cache_directory()
    root = cache / "roots" / f"{suite}-{zlib.crc32(' '.join(packages).encode()):08x}"
    if root.exists():
        return root
    require({"mmdebstrap": "mmdebstrap"})
    root.parent.mkdir(exist_ok=True)
    with locked(cache / "lock"):
        if not root.exists():
            build(suite, packages, root)
    return root


def build(suite: str, packages: Sequence[str], root: Path) -> None:
    """Make the root directory.  The caller holds the lock."""
    say(f"making a root directory of Debian {suite}, which takes a minute or two")
    with tempfile.TemporaryDirectory(dir=root.parent, prefix="new-") as directory:
        new = Path(directory, "root")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
        command += ["--aptopt=APT::Install-Recommends false"]
        if suite not in SUITES.values():
            # The Release file of a suite in the making, as a mirror has it, may have expired.
            command += ["--aptopt=Acquire::Check-Valid-Until false"]
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
