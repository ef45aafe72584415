"""Run what may wait for requests of a device, of a server by ublk, in a process of its own.

No thread of such a server may wait for requests of its own device in a call that no signal ends,
and neither may a thread that the kernel has made for its io_uring. When a server is killed, its
io_uring is closed, and what is in flight fails, once its last thread has ended; that thread would
end once its requests are answered: neither would ever happen, and the device would hang until the
machine is rebooted. The thread that calls this waits for a process.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from .. import interpreter

Child = tuple[int, int]
"""A process: its id, and where to read its output."""


def start(program: str, *words: str) -> Child:
    """Start a process that Ctrl-C does not reach.

    Args:
        program: source code; it has the standard library only, and prints an error number, or 0.
        words: its arguments.

    Raises:
        OSError: it cannot be started.

    """
    command = interpreter.bare_command("-c", program, *words)
    output, childs_output = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, childs_output, 1)]
    try:
        child = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setpgroup=0)
    except BaseException:
        os.close(output)
        raise
    finally:
        os.close(childs_output)
    return child, output


def wait(child: Child) -> None:
    """Wait until a process has ended. Blocks; any signal that ends this process ends the wait.

    Raises:
        OSError: the one whose number it has printed; EIO if it has printed none.

    """
    process, output = child
    with os.fdopen(output, "rb") as file:
        answer = file.read()
    with suppress(ChildProcessError):  # where SIGCHLD is ignored, none is left to wait for
        os.waitpid(process, 0)
    if number := int(answer or errno.EIO):
        raise OSError(number, os.strerror(number))
