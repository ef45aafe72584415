"""Play a page of the documentation: write its files, type its commands, compare what they print."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from .pages import Command, all_blocks, commands

PATIENCE = 240.0
"""Seconds for one command, in a virtual machine too."""

_END = re.compile(r"^--- (\d+) ---\n", re.MULTILINE)


class Shell:
    """A shell that goes on from one command to the next, and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._printed = ""

    async def type(self, command: Command) -> None:
        """Run a command; wait until it has ended and printed what the page says.

        What a command in the background prints may come after its end. A command may fail only if
        the page shows what it prints then.

        Raises:
            AssertionError: it printed something else, failed unseen, or took too long.

        """
        assert self._process.stdin is not None  # because it is a pipe
        typed = command.text.rstrip("\n")
        self._process.stdin.write(f'{typed}\necho "--- $? ---"\n'.encode())
        expected = pattern(command.output)
        is_background = typed.endswith("&")
        try:
            async with asyncio.timeout(PATIENCE):
                while (ended := _END.search(self._printed)) is None:
                    self._printed += await self._receive()
                while is_background and not self._matches(expected):
                    self._printed += await self._receive()
        except (TimeoutError, EOFError):
            ended = None
        failed_unseen = ended is not None and ended[1] != "0" and not command.output
        if ended is None or failed_unseen or not self._matches(expected):
            raise AssertionError(
                f"{typed}\nprinted\n{self._printed}\nwhere the page says\n{command.output}"
            )
        self._printed = ""

    def _matches(self, expected: re.Pattern[str]) -> bool:
        return expected.fullmatch(_END.sub("", self._printed)) is not None

    async def _receive(self) -> str:
        assert self._process.stdout is not None  # because it is a pipe
        received = await self._process.stdout.read(1 << 16)
        if not received:
            raise EOFError("the shell has ended")
        return received.decode(errors="replace")


def pattern(output: str) -> re.Pattern[str]:
    """Return what matches an output, in which ``...`` stands for anything."""
    return re.compile(re.escape(output).replace(r"\.\.\.", ".*"), re.DOTALL)


@asynccontextmanager
async def shell(folder: Path) -> AsyncIterator[Shell]:
    """Run a shell in a folder, with this Python's commands; what it started ends with the block."""
    environment = dict(os.environ)
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}:/usr/sbin:/sbin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C",
    }
    process = await asyncio.create_subprocess_exec(
        "bash",
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Shell(process)
    finally:
        assert process.stdin is not None  # because it is a pipe
        process.stdin.write(b"kill $(jobs -p) 2>/dev/null; wait\n")
        process.stdin.close()
        await process.communicate()


async def play(page: str, folder: Path, *, root: bool) -> int:
    """Do what a page says, in the order in which it says it; return how many commands were run.

    Args:
        page: its path in the repository.
        folder: an empty one, where its files are written.
        root: whether commands after root's prompt are run, too.

    Raises:
        AssertionError: a command printed something else than the page has.

    """
    count = 0
    async with shell(folder) as terminal:
        for block in all_blocks(page):
            if block.file:
                (folder / block.file).write_text(block.text)
            elif block.language == "console":
                for command in commands(block.text):
                    if root or not command.root:
                        await terminal.type(command)
                        count += 1
    return count
