"""Starting further Python interpreters, which find modules where this one found this package.

``python -c`` and ``python -m`` look for modules in the current directory first, the standard
library's among them. Whoever may write there could have his code run by whoever starts a server
there, root perhaps. So each interpreter that this package starts begins without that directory,
and takes its modules from where this process took them before any SPEC was looked at. What a user
has added to ``sys.path`` later is added when user code is to be loaded, and not before.
"""

from __future__ import annotations

import os
import sys

PATH = [os.path.abspath(each) for each in sys.path]
"""``sys.path`` as it was when this package was imported, whatever becomes the current directory."""


def command(code: str, *arguments: str) -> list[str]:
    """The command that runs ``code`` in another interpreter, with this package's modules at hand.

    Args:
        code: what to run.
        arguments: ``sys.argv[1:]`` for it.

    """
    return [
        sys.executable,
        *_flags(),
        "-c",
        f"import sys; sys.path[:] = {PATH!r}; {code}",
        *arguments,
    ]


def bare_command(*words: str) -> list[str]:
    """The command of an interpreter that knows nothing but the standard library.

    Args:
        words: ``-c`` and code, or a file; then its arguments.

    """
    return [sys.executable, "-IS", *words]


def _flags() -> list[str]:
    """``-P``, and what has been ruled out for this interpreter."""
    flags = sys.flags
    return [
        "-P",
        *(["-I"] if flags.isolated else []),
        *(["-E"] if flags.ignore_environment else []),
        *(["-s"] if flags.no_user_site else []),
    ]
