"""Commands to a running ``aiovblk mount``, by a Unix socket: for now, to resize its device.

The socket is in the directory of the locks, which only root can write to. A request is a line of
JSON, ``{"resize": BYTES, "shrink": false}``, and so is its reply, ``{}`` or ``{"error": TEXT}``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
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

Resize = Callable[[int, bool], Awaitable[None]]
"""Resizes the device to so many bytes; the flag permits to cut something off."""


def control_path(index: int) -> Path:
    """Return where the server of /dev/nbdN takes commands."""
    return locks.LOCKS / f"nbd{index}.control"


@asynccontextmanager
async def taking_commands(index: int, resize: Resize) -> AsyncIterator[None]:
    """Take commands for the device of this process while the block runs.

    That there can be no socket (no /run in a minimal container) is logged, and no error.

    Args:
        index: N of /dev/nbdN.
        resize: what resizes it.

    """
    async with AsyncExitStack() as stack:
        try:
            await _listen(control_path(index), resize, stack)
        except OSError as exc:
            logger.info("/dev/nbd%d takes no commands: %s", index, exc.strerror or exc)
        yield


async def _listen(path: Path, resize: Resize, stack: AsyncExitStack) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(json.dumps(await _reply(await reader.readline(), resize)).encode() + b"\n")
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


async def _reply(line: bytes, resize: Resize) -> dict[str, str]:
    try:
        request = json.loads(line)
        size, shrink = request["resize"], request["shrink"]
        if not isinstance(size, int) or not isinstance(shrink, bool):
            raise TypeError
    except (ValueError, TypeError, LookupError):
        return {"error": "unknown command: its server may be of another version"}
    try:
        await resize(size, shrink)
    except (Error, OSError, ValueError) as exc:
        return {"error": str(exc)}
    return {}


async def request_resize(index: int, size: int, *, shrink: bool) -> None:
    """Have the process that serves /dev/nbdN resize it.

    Raises:
        SpecError: it does not, and says why; or no server takes commands there.

    """
    path = control_path(index)
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE)
    except (FileNotFoundError, ConnectionRefusedError):
        raise SpecError(
            f"/dev/nbd{index} is not served by `aiovblk mount`: resize it in the program that"
            " serves it (mount.resize())"
        ) from None
    try:
        writer.write(json.dumps({"resize": size, "shrink": shrink}).encode() + b"\n")
        reply: dict[str, Any] = json.loads(
            await reader.readline() or b'{"error": "its server ended"}'
        )
    finally:
        writer.close()
    if "error" in reply:
        raise SpecError(f"/dev/nbd{index}: {reply['error']}")
