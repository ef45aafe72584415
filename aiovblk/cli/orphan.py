"""Starting a program that is a child of the service manager's, not of this process.

systemd waits for the end of a service's main process only if that is its own child: of another it
takes for granted that SIGTERM had no effect, and sends SIGKILL at once (unit_kill_context).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from .. import interpreter

# In between: a process that ends. Whatever it has started belongs to process 1 from then on.
_START = """
import os, sys
os.set_inheritable(int(sys.argv[1]), False)
process = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
os.write(int(sys.argv[1]), b"%d" % process)
"""


def spawn_reparented(command: list[str], environment: Mapping[str, str]) -> int:
    """Start a program; blocks for as long as it takes to start Python.

    Returns:
        The process.

    Raises:
        OSError: it cannot be started.

    """
    reading, writing = os.pipe()
    with open(reading, "rb") as answer:
        os.set_inheritable(writing, True)
        words = interpreter.bare_command("-c", _START, f"{writing}", *command)
        try:
            # The threads of this package block all signals, which would be inherited.
            between = os.posix_spawn(words[0], words, environment, setsigmask=())
        finally:
            os.close(writing)
        process = answer.read()
        os.waitpid(between, 0)
    if not process:
        raise OSError(errno.ENOEXEC, f"{command[0]} cannot be started")
    return int(process)


def is_running(process: int) -> bool:
    """Whether a process has not ended; the number of one that has is not used again soon."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
