"""Commands to a running ``aiovblk mount``, by a Unix socket: to resize its device, to limit it.

The socket is in the directory of the locks, which only root can write to. A request is a line of
JSON, ``{"command": NAME, "arguments": {...}}``, and so is its reply, ``{"result": ...}`` or
``{"error": TEXT}``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from ..errors import Error
from ..kernel import locks
from ..server.listeners import SocketFile, listen_unix
from .errors import SpecError

logger = logging.getLogger("aiovblk")

MAX_LINE = 4096
"""Bytes of a request or a reply."""

Commands = Mapping[str, Callable[..., Awaitable[object]]]
"""What runs each command, by its name; what it returns can be written as JSON."""


def control_path(index: int) -> Path:
    """Return where the server of /dev/nbdN takes commands."""
    return locks.LOCKS / f"nbd{index}.control"


@asynccontextmanager
async def taking_commands(index: int, commands: Commands) -> AsyncIterator[None]:
    """Take commands for the device of this process while the block runs.

    That there can be no socket (no /run in a minimal container) is logged, and no error.

    Args:
        index: N of /dev/nbdN.
        commands: that it takes.

    """
    async with AsyncExitStack() as stack:
        try:
            await _listen(control_path(index), commands, stack)
        except OSError as exc:
            logger.info("/dev/nbd%d takes no commands: %s", index, exc.strerror or exc)
        yield


async def _listen(path: Path, commands: Commands, stack: AsyncExitStack) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await _reply(await reader.readline(), commands)
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError) as exc:  # it has not waited, or its line is too long
            logger.info("a command was not answered: %s", exc)
        finally:
            writer.close()

    # Bound under another name: the predecessor in an upgrade may still listen at this one.
    name = f"{path}.{os.getpid()}"
    sock = listen_unix(name)
    stack.callback(sock.close)
    os.chmod(name, 0o600)
    os.replace(name, path)
    stack.callback(SocketFile(str(path)).remove)
    server = await asyncio.start_unix_server(serve, sock=sock, limit=MAX_LINE)
    stack.callback(server.close)


async def _reply(line: bytes, commands: Commands) -> dict[str, object]:
    try:
        request = json.loads(line)
        running = commands[request["command"]](**request["arguments"])
    except (ValueError, TypeError, LookupError):
        return {"error": "its server does not know this command: it may be of another version"}
    try:
        return {"result": await running}
    except (Error, OSError, ValueError) as exc:
        return {"error": str(exc)}


async def request_command(index: int, command: str, **arguments: object) -> Any:
    """Have the process that serves /dev/nbdN run a command; return its result.

    Raises:
        SpecError: it fails, and says why; or no server takes commands there.

    """
    path = control_path(index)
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE)
    except (FileNotFoundError, ConnectionRefusedError):
        raise SpecError(
            f"/dev/nbd{index} is not served by `aiovblk mount`: only that takes commands; for"
            " another program's device, do it there (mount.resize(), say)"
        ) from None
    try:
        request = {"command": command, "arguments": arguments}
        writer.write(json.dumps(request).encode() + b"\n")
        reply: dict[str, Any] = json.loads(
            await reader.readline() or b'{"error": "its server ended"}'
        )
    finally:
        writer.close()
    if "error" in reply:
        raise SpecError(f"/dev/nbd{index}: {reply['error']}")
    return reply["result"]
