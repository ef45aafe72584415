"""Run a command beside a server, and end both together (``--run``)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..aio.tasks import wait_uncancelled
from ..protocol import URI
from ..server import Server
from ..threads import run_in_daemon_thread
from .allocator import environment_for_others

SHELL = "/bin/sh"

TERMINATE_TIMEOUT = 10.0
"""Seconds for the command to end after SIGTERM."""

_POLL = 0.02
"""Seconds between two looks at whether all processes of the command have ended."""


def variables_of(uri: str) -> dict[str, str]:
    """Return the environment variables with which the command can connect, named as nbdkit's are.

    ``uri`` and ``nbd`` are the same URI; then ``unixsocket`` or ``port``, ``exportname``, and
    ``tls`` (2: required), which is missing without TLS.
    """
    parsed = URI.parse(uri)
    variables = {"uri": uri, "nbd": uri, "exportname": parsed.export}
    if parsed.socket is not None:
        variables |= {"unixsocket": parsed.socket, "port": ""}
    else:
        variables |= {"unixsocket": "", "port": str(parsed.port)}
    return variables | ({"tls": "2"} if parsed.tls else {})


async def run_beside(server: Server, command: str, variables: Mapping[str, str]) -> int:
    """Run a shell command, then shut the server down; or end the command with the server.

    Args:
        server: that the command uses.
        command: for :data:`SHELL`.
        variables: added to its environment.

    Returns:
        Its exit status; 128 and the number of the signal if one has ended it, as shells have it.

    Raises:
        OSError: the shell cannot be started, or what it runs may not be signalled.

    Cancellation: the command gets SIGTERM, and is waited for.

    """
    child = _Shell(command, environment_for_others() | dict(variables))
    closed = asyncio.create_task(server.wait())
    first: list[asyncio.Future[Any]] = [child.ended, closed]
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    finally:
        closed.cancel()
        ending = asyncio.create_task(child.terminate())
        is_cancelled = await wait_uncancelled(ending)
        ending.result()  # if it could not be ended, that is said, cancelled or not
        if is_cancelled:
            raise asyncio.CancelledError
    server.close()
    status = child.ended.result()
    return 128 - status if status < 0 else status


class _Shell:
    """A running shell, in a process group with the commands that it runs.

    As timeout(1) does it: in the foreground of a terminal it stays in the group of this process, so
    that it may read from the terminal, whose keys send their signals to all of the group.

    Not by the event loop: uvloop sets all signals to their default in a child, SIGHUP too that
    nohup ignores, and closes no descriptors.

    Attributes:
        ended: done once the shell has ended, with its status.

    """

    def __init__(self, command: str, environment: Mapping[str, str]) -> None:
        group = None if _is_in_foreground() else 0
        self._process = subprocess.Popen(
            [SHELL, "-c", command], env=environment, process_group=group
        )
        self._has_group = group is not None
        self.ended = asyncio.wrap_future(run_in_daemon_thread(self._process.wait))

    async def terminate(self) -> None:
        """End it, and all of its group, by SIGTERM, then by force; no-op if the shell has ended."""
        if self.ended.done():
            return
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(TERMINATE_TIMEOUT):
                await asyncio.wait([self.ended])
                while self._has_others():  # noqa: ASYNC110 (they are not our children)
                    await asyncio.sleep(_POLL)
                return
        self._signal(signal.SIGKILL)
        await asyncio.wait([self.ended])

    def _has_others(self) -> bool:
        """Whether the group has processes that have outlived the shell."""
        if not self._has_group:
            return False
        with suppress(ChildProcessError):
            # As process 1 of a container this one inherits them, and has to reap them.
            os.waitpid(-self._process.pid, os.WNOHANG)
        with suppress(PermissionError):  # all that are left belong to another user, as by sudo
            return self._signal(0)
        return False

    def _signal(self, number: int) -> bool:
        """Send a signal; return whether there was a process to get it."""
        if not self._has_group:
            self._process.send_signal(number)
            return True
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True


def _is_in_foreground() -> bool:
    """Whether this process is in the foreground of a terminal."""
    try:
        with open(os.ctermid(), "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False  # it has none
