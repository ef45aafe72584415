"""The interpreters that are measured, and how they were built.

How fast a Python is depends on its build as much as on its version: one that was optimized by a
profile of its use (PGO) needs a tenth less time. Distributions build theirs so, and so do Docker's
official images; pyenv does only on request.

Run as a program by an interpreter, it says with its exit status whether that one was; so it
imports nothing that is not everywhere.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.13", "3.14")
REFERENCE = "3.13"
"""What is compared with everything else."""


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter of ``make bench``'s, or else one of ``make setup``'s.

    Args:
        version: major and minor.
        command: what starts it; its first word is a path.
        is_optimized: whether it was built with PGO.

    """

    version: str
    command: tuple[str, ...]
    is_optimized: bool


def find(version: str, root: Path = ROOT) -> Python | None:
    """The interpreter of a version; None where there is none."""
    for name, is_optimized in ((f"bench-{version}", True), (version, False)):
        directory = root / ".venvs" / name
        program = directory / "bin" / "python"
        if (directory / "root").exists():
            system = str((directory / "root").resolve())
            entering = (str(root / "tools" / "in-root"), system)
            return Python(version, (*entering, str(program)), is_optimized)
        if program.exists():
            return Python(version, (str(program),), is_optimized)
    return None


def available(root: Path = ROOT) -> list[Python]:
    """Those that there are, oldest first."""
    return [python for version in VERSIONS if (python := find(version, root))]


def built_with_profile(config: Mapping[str, object], prefix: str) -> bool:
    """Whether a Python was optimized by a profile of its use.

    Args:
        config: :func:`sysconfig.get_config_vars`.
        prefix: ``sys.base_prefix``. In ``/usr`` it is the distribution's, and all of those that are
            supported here build it with a profile; Debian by targets of its own.

    """
    return prefix == "/usr" or "--enable-optimizations" in str(config.get("CONFIG_ARGS"))


if __name__ == "__main__":
    sys.exit(not built_with_profile(sysconfig.get_config_vars(), sys.base_prefix))
