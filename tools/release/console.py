"""How the tool speaks to its user, and how it runs commands."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class PackagingError(Exception):
    """A package cannot be built; the text says why, and what to do about it."""


def say(text: str) -> None:
    """Print one message of the tool itself."""
    print(f"packages: {text}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str | Path],
    *,
    directory: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Run a command that should succeed, and return what it printed.

    Args:
        command: the program and its arguments.
        directory: where to run it; by default where this process is.
        variables: the whole environment; by default that of this process.

    Raises:
        PackagingError: it failed; the text ends with what it printed last.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=directory,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        last = "".join(f"\n    {line}" for line in done.stdout.splitlines()[-25:])
        raise PackagingError(f"status {done.returncode} of {' '.join(words)}{last}")
    return done.stdout
