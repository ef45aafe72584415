"""The command as a process of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


@asynccontextmanager
async def running(
    *arguments: str | Path, **options: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command with its output in a pipe; it does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiovblk", *map(str, arguments)),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None  # it is a pipe
    read = await asyncio.wait_for(stream.readline(), 60)
    assert read, "the program has ended"
    return read.decode().rstrip()


async def end(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """Exit status, output and errors of what ends by itself."""
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None  # communicate() waits for it
    return process.returncode, (out or b"").decode(), (errors or b"").decode()
