"""What has passed for which state of the tree, so that a run can be resumed.

    CACHE/passed/TREE.json    {"step name": {"command": "...", "seconds": ...}, ...}

TREE is git's name of the tree with everything that is not ignored, committed or not.  A change
anywhere makes another one, and nothing that has passed before counts for it.  Neither does a step
of the same name with another command: a smaller size leaves out what takes long.
"""

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TypedDict

from .steps import Step

KEPT = 30
"""Records of so many trees are kept, the newest."""


def cache_directory() -> Path:
    """Return the directory of what is kept between runs, which tools/vm has as well."""
    general = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("AIOVBLK_CACHE") or f"{general}/aiovblk").absolute()


def tree_name() -> str | None:
    """Return git's name of the tree in the current directory; None where git cannot tell."""
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {"GIT_INDEX_FILE": f"{directory}/index"}
        name = ""
        for command in (["read-tree", "HEAD"], ["add", "--all", "."], ["write-tree"]):
            try:
                done = subprocess.run(
                    ["git", *command], env=environment, capture_output=True, text=True
                )
            except FileNotFoundError:
                return None
            if done.returncode:
                return None
            name = done.stdout.strip()
        return name


class Record(TypedDict):
    """One step that has passed."""

    command: str
    seconds: float


class Records:
    """The steps that have passed for the present tree."""

    def __init__(self) -> None:
        self.tree = tree_name()
        self._path = cache_directory() / "passed" / f"{self.tree}.json"
        self._passed: dict[str, Record] = {}
        if self.tree and self._path.exists():
            self._passed = json.loads(self._path.read_text())

    def seconds(self, step: Step) -> float | None:
        """Return how long a step took that has passed; None if it has not."""
        record = self._passed.get(step.name)
        if record is None or record["command"] != shlex.join(step.command):
            return None
        return record["seconds"]

    def note(self, step: Step, seconds: float, *, passed: bool) -> None:
        """Record how a step ended; a failure takes an earlier success back."""
        if not self.tree:
            return
        self._passed.pop(step.name, None)
        if passed:
            self._passed[step.name] = Record(
                command=shlex.join(step.command), seconds=round(seconds, 1)
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(self._passed, indent=1) + "\n")
        new.rename(self._path)
        self._drop_old()

    def _drop_old(self) -> None:
        """Keep the directory small."""
        records = sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in records[:-KEPT]:
            path.unlink(missing_ok=True)
