"""Run a command beside a server, and end both together (``--run``)."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import Process
from collections.abc import Mapping

from ..aio.tasks import wait_uncancelled
from ..protocol import URI
from ..server import Server

SHELL = "/bin/sh"

TERMINATE_TIMEOUT = 10.0
"""Seconds for the command to end after SIGTERM."""


def variables_of(uri: str) -> dict[str, str]:
    """Return the environment variables that tell the command how to connect, as nbdkit names them.

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
        OSError: the shell cannot be started.

    Cancellation: the command gets SIGTERM, and is waited for.

    """
    child = await asyncio.create_subprocess_exec(
        SHELL, "-c", command, env=os.environ | dict(variables)
    )
    running = asyncio.create_task(child.wait())
    closed = asyncio.create_task(server.wait())
    try:
        await asyncio.wait([running, closed], return_when=asyncio.FIRST_COMPLETED)
    finally:
        closed.cancel()
        if await wait_uncancelled(asyncio.create_task(_terminate(child, running))):
            raise asyncio.CancelledError
    server.close()
    status = running.result()
    return 128 - status if status < 0 else status


async def _terminate(child: Process, running: asyncio.Task[int]) -> None:
    if running.done():
        return
    child.terminate()
    await asyncio.wait([running], timeout=TERMINATE_TIMEOUT)
    if not running.done():
        child.kill()
        await asyncio.wait([running])
