"""How the tool speaks to its user: lines on stderr, so that stdout is the command's alone."""

import shutil
import sys
from collections.abc import Sequence


class VMError(Exception):
    """The run cannot be made; the text is one line that says what to do about it."""


def say(text: str) -> None:
    """Print one message of the tool itself."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


def require(programs: dict[str, str]) -> None:
    """Check that `programs` (name to Debian package) are there.

    Raises:
        VMError: some are not; names the packages to install.
    """
    missing = sorted({package for name, package in programs.items() if not find_program(name)})
    if missing:
        raise VMError(f"needs programs that are not here; apt-get install {' '.join(missing)}")


def find_program(name: str) -> str | None:
    """Return the path of `name`, looking where Debian keeps root's programs too."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def quoted_lines(lines: Sequence[str]) -> str:
    """Return `lines` as an indented block to end a message with."""
    return "".join(f"\n    {line}" for line in lines)
