"""The Python environments that `make setup` made, and the commands that run pytest in them."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
REPORTS = Path("build/tests")
"""Where steps leave their JUnit files, and the report of a whole run; below ROOT."""

SUPPORTED = ("3.11", "3.12", "3.13", "3.14")


class SetupError(Exception):
    """Something that `make setup` provides is missing; the text says so in one line."""


def wanted() -> list[str]:
    """Return the versions to test on, oldest first: $PYTHONS, or all that are supported."""
    return os.environ.get("PYTHONS", "").split() or list(SUPPORTED)


def available() -> list[str]:
    """Return those of the wanted versions that have an environment, oldest first.

    Raises:
        SetupError: none of them has one.
    """
    found = [version for version in wanted() if os.path.lexists(interpreter(version))]
    if not found:
        raise SetupError(f"no environment for Python {' or '.join(wanted())}: run make setup")
    return found


def on_this_system() -> list[str]:
    """Return the available versions that run without a root directory of their own.

    Raises:
        SetupError: there is none.
    """
    found = [version for version in available() if not own_root(version)]
    if not found:
        raise SetupError("no Python of this system has an environment: run make setup")
    return found


def oldest_and_newest() -> list[str]:
    """Return the first and the last version of this system, which may be the same."""
    return list(dict.fromkeys([on_this_system()[0], on_this_system()[-1]]))


def default() -> str:
    """Return the version of .venv, or the newest of $PYTHONS where that is set."""
    if os.environ.get("PYTHONS"):
        return on_this_system()[-1]
    return "{}.{}".format(*sys.version_info)


def interpreter(version: str) -> str:
    """Return the path of the interpreter of that version's environment, below ROOT."""
    return f".venvs/{version}/bin/python"


def own_root(version: str) -> Path | None:
    """Return the root directory that this version needs, if it is not one of this system's.

    tools/setup makes one where a supported Python is not packaged for this system.
    """
    link = Path(f".venvs/{version}/root")
    return link.resolve() if link.exists() else None


def python(version: str) -> list[str]:
    """Return the command that starts the interpreter of `version`."""
    root = own_root(version)
    entering = ["tools/in-root", f"{root}"] if root else []
    return [*entering, interpreter(version)]


def pytest(
    version: str, step: str, words: Sequence[str], *, parallel: int = 0, debug: bool = True
) -> list[str]:
    """Return a pytest command, for which every warning is an error.

    Args:
        version: the Python to run it on.
        step: the name of the step, for its JUnit file.
        words: paths, and options of pytest.
        parallel: how many processes of pytest-xdist; 0 runs the tests in pytest's own.
        debug: whether asyncio's debug mode is on, and Python checks its memory.
    """
    strict = [*(["-X", "dev"] if debug else []), "-W", "error"]
    command = [*python(version), *strict, "-m", "pytest", f"--junitxml={junit(step)}", *words]
    if parallel:
        # xdist starts its workers without these options, unless it gets the whole command.
        worker = " ".join([f"{ROOT / interpreter(version)}", *strict])
        command += ["--dist=worksteal", f"--tx={parallel}*popen//python={worker}"]
    return command


def junit(step: str) -> Path:
    """Return the JUnit file of a step, below ROOT."""
    return REPORTS / f"{re.sub('[^a-z0-9.]+', '-', step.lower())}.xml"
