"""Build the commands of Python subprocesses, with a safe ``sys.path``: workers, watchdog, upgrade.

``python -c`` and ``python -m`` search the current directory for modules first, even for those of
the standard library. A user with write access to it could have code run by the user who starts a
server there, root perhaps. So each interpreter that this package starts begins without that
directory (``-P``), and with the ``sys.path`` that this process had before any SPEC was evaluated.
What a user has added to ``sys.path`` later is added when user code is to be loaded, not before.
"""

from __future__ import annotations

import os
import sys

PATH = [os.path.abspath(each) for each in sys.path]
"""``sys.path`` at the import of this package, absolute: the current directory may change."""


def command(code: str, *arguments: str) -> list[str]:
    """Return the command that runs ``code`` in another interpreter that can import this package.

    Args:
        code: the source code to run.
        arguments: its ``sys.argv[1:]``.

    """
    return [
        sys.executable,
        *_flags(),
        "-c",
        f"import sys; sys.path[:] = {PATH!r}; {code}",
        *arguments,
    ]


def bare_command(*words: str) -> list[str]:
    """Return the command of an isolated interpreter, with only the standard library.

    Args:
        words: ``-c`` and source code, or a file; then its arguments.

    """
    return [sys.executable, "-IS", *words]


def _flags() -> list[str]:
    """Return ``-P``, and the isolation options of this interpreter."""
    flags = sys.flags
    return [
        "-P",
        *(["-I"] if flags.isolated else []),
        *(["-E"] if flags.ignore_environment else []),
        *(["-s"] if flags.no_user_site else []),
    ]
