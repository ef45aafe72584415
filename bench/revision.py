"""Two trees of aiovblk beside each other: ``--against REV``.

Both are copies in folders of the same length: that of the path of a module alone, two copies of the
same code, moved figures by several percent. Only the package is copied; the servers' command lines,
devices and load are those of this checkout for both.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .native import BUILT
from .pythons import ROOT, Python

PACKAGE = "aiovblk"
THIS, OTHER = BUILT / "trees" / "here", BUILT / "trees" / "then"


class RevisionError(Exception):
    """Git has no such revision."""


def export(
    revision: str,
    pythons: Sequence[Python],
    repository: Path = ROOT,
    this: Path = THIS,
    other: Path = OTHER,
) -> None:
    """Copy the package as it is now, and as it was at a revision.

    Args:
        revision: any name that git has for it.
        pythons: those that both copies are compiled for; a virtual machine could not keep what it
            compiles, and would take a minute for that at each start.
        repository: what holds the package.
        this: the folder for the package as it is now.
        other: the folder for the other.

    Raises:
        RevisionError: git does not know the revision, or it has no package.

    """
    done = subprocess.run(
        ["git", "archive", revision, PACKAGE], cwd=repository, capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise RevisionError(f"git has nothing at {revision}: {said}")
    for folder in (this, other):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    shutil.copytree(
        repository / PACKAGE, this / PACKAGE, ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run(["tar", "-x", "-C", str(other)], input=done.stdout, check=True)
    for python in pythons:
        subprocess.run([*python.command, "-m", "compileall", "-q", this, other], check=True)


def trees(revision: str | None) -> tuple[Path, tuple[str, Path] | None]:
    """What to measure, after :func:`export`: the tree, and the revision with its own, if any."""
    return (THIS, (revision, OTHER)) if revision else (ROOT, None)
