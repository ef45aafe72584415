"""Commands to a running ``aiovblk mount`` or ``serve``, by a Unix socket: resize, limit, bitmap.

The socket of a mounted device is in the directory of the locks, which only root can write to; that
of a served one is beside the file of its bitmaps. A request is a line of
JSON, ``{"command": NAME, "arguments": {...}}``, and so is its reply, ``{"result": ...}`` or
``{"error": TEXT}``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import Error
from ..kernel import locks
from ..kernel.sysfs import Disk, disk_name
from ..server.listeners import SocketFile, listen_unix
from .errors import SpecError

logger = logging.getLogger("aiovblk")

MAX_LINE = 64 * 1024
"""Bytes of a request or a reply."""

REQUEST_TIMEOUT = 10.0
"""Seconds for a client to send its request, and to take the reply."""

REPLY_TIMEOUT = 30.0
"""Seconds for a server to answer. A command that takes longer has a time limit of its own."""

Commands = Mapping[str, Callable[..., Awaitable[object]]]
"""What runs each command, by its name; what it returns can be written as JSON."""


def control_path(disk: Disk) -> Path:
    """Return where the server of a device takes commands."""
    return locks.LOCKS / f"{disk_name(disk)}.control"


def taking_commands(disk: Disk, commands: Commands) -> AbstractAsyncContextManager[None]:
    """Take commands for the device of this process while the block runs.

    Args:
        disk: the device.
        commands: that it takes.

    """
    with suppress(OSError):  # said below
        locks.make_directory()  # of a ublk device there is no lock
    return taking_commands_at(control_path(disk), f"/dev/{disk_name(disk)}", commands)


@asynccontextmanager
async def taking_commands_at(path: Path, shown: str, commands: Commands) -> AsyncIterator[None]:
    """Take commands at a socket while the block runs.

    That there can be no socket (no /run in a minimal container) is logged, and no error.

    Args:
        path: of the socket.
        shown: what takes them, for the log.
        commands: that it takes.

    """
    async with AsyncExitStack() as stack:
        try:
            await _listen(path, commands, stack)
        except OSError as exc:
            logger.info("%s takes no commands: %s", shown, exc.strerror or exc)
        yield


async def _listen(path: Path, commands: Commands, stack: AsyncExitStack) -> None:
    clients: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.create_task(_serve(reader, writer, commands))
        clients.add(client)
        client.add_done_callback(clients.discard)

    # Bound under another name: the predecessor in an upgrade may still listen at this one.
    name = f"{path}.{os.getpid()}"
    sock = listen_unix(name, mode=0o600)
    stack.callback(sock.close)
    os.replace(name, path)
    stack.callback(SocketFile(str(path)).remove)
    stack.push_async_callback(_cancel, clients)
    server = await asyncio.start_unix_server(accept, sock=sock, limit=MAX_LINE)
    stack.callback(server.close)


async def _cancel(clients: set[asyncio.Task[None]]) -> None:
    """End the commands that are in progress: the device that they are for is gone."""
    ending = list(clients)
    for client in ending:
        client.cancel()
    if ending:
        await asyncio.wait(ending)


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, commands: Commands
) -> None:
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT):
            line = await reader.readline()
        reply = await _reply(line, commands)
        writer.write(json.dumps(reply).encode() + b"\n")
        async with asyncio.timeout(REQUEST_TIMEOUT):
            await writer.drain()
    except TimeoutError:
        logger.info("a command was not answered: its client sent or took nothing in time")
    except (OSError, ValueError) as exc:  # it has not waited, or its line is too long
        logger.info("a command was not answered: %s", exc)
    finally:
        writer.close()


async def _reply(line: bytes, commands: Commands) -> dict[str, object]:
    try:
        request = json.loads(line)
        running = commands[request["command"]](**request["arguments"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return {"error": "its server does not know this command: it may be of another version"}
    try:
        return {"result": await running}
    except (Error, OSError, ValueError) as exc:
        return {"error": str(exc)}
    except Exception as exc:  # a bug in the command or the device: the client gets it too
        logger.warning("command %s failed: %r", request["command"], exc)
        return {"error": repr(exc)}


async def request_command(
    disk: Disk, command: str, *, timeout: float | None = None, **arguments: object
) -> Any:
    """Have the process that serves a device run a command; return its result.

    Args:
        disk: the device.
        command: its name.
        timeout: seconds for the answer; None for :data:`REPLY_TIMEOUT`.
        arguments: of the command.

    Raises:
        SpecError: it fails, and says why; or no server takes commands there, or it has not answered
            in time.

    """
    path = f"/dev/{disk_name(disk)}"
    # An ordinary user, who may serve by ublk, cannot make the socket.
    served = "`aiovblk mount`" if isinstance(disk, int) else "root's `aiovblk mount`"
    return await request_command_at(
        control_path(disk),
        path,
        f"{path} is not served by {served}: only that takes commands; for"
        " another program's device, do it there (mount.resize(), say)",
        command,
        timeout=timeout,
        **arguments,
    )


async def request_command_at(
    path: Path,
    shown: str,
    refused: str,
    command: str,
    *,
    timeout: float | None = None,
    **arguments: object,
) -> Any:
    """Have the process that listens at a socket run a command; return its result.

    Args:
        path: of the socket.
        shown: what takes commands there, for an error.
        refused: the error if nothing does.
        command: its name.
        timeout: seconds for the answer; None for :data:`REPLY_TIMEOUT`.
        arguments: of the command.

    Raises:
        SpecError: as for :func:`request_command`.

    """
    try:
        async with asyncio.timeout(REPLY_TIMEOUT if timeout is None else timeout):
            reply = await _ask(path, {"command": command, "arguments": arguments})
    except TimeoutError:
        raise SpecError(
            f"{shown}: its server does not answer; it may be stopped, or still be at it"
        ) from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise SpecError(refused) from None
    if "error" in reply:
        raise SpecError(f"{shown}: {reply['error']}")
    return reply["result"]


async def _ask(path: Path, request: Mapping[str, object]) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE)
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        line = await reader.readline()
    finally:
        writer.close()
    reply: dict[str, Any] = json.loads(line or b'{"error": "its server ended"}')
    return reply
