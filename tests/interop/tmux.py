"""A program in a terminal, which is tmux's: what the terminal shows, keys, another size."""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .programs import PATIENCE, program


class Pane:
    """A terminal with one program.

    A test waits for what the terminal shows. Whenever the program writes, tmux writes the same to a
    pipe, and the terminal is looked at again: nothing sleeps.
    """

    def __init__(self, socket: Path, output: int) -> None:
        self._socket = socket
        self._output = output

    def tmux(self, *words: str) -> str:
        """Have tmux do something; return what it prints."""
        done = subprocess.run(
            [program("tmux"), "-S", f"{self._socket}", "-f", "/dev/null", *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.stdout

    def lines(self, *, styles: bool = False) -> list[str]:
        """What the terminal shows, without empty lines; with escape sequences if asked for."""
        text = self.tmux("capture-pane", "-p", *(["-e"] if styles else []))
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def until(self, condition: Callable[[list[str]], object], *, styles: bool = False) -> list[str]:
        """Wait until what :meth:`lines` returns is as wanted, and return it."""
        deadline = time.monotonic() + PATIENCE
        while not condition(shown := self.lines(styles=styles)):
            left = deadline - time.monotonic()
            assert left > 0, "\n".join(["waited in vain; the terminal shows:", *shown])
            if select.select([self._output], [], [], left)[0]:
                os.read(self._output, 1 << 16)
        return shown

    def press(self, key: str) -> None:
        """Press a key, by tmux's name of it: ``C-c``."""
        self.tmux("send-keys", key)

    def resize(self, columns: int) -> None:
        """Change the width of the terminal."""
        self.tmux("resize-window", "-x", f"{columns}")


@contextmanager
def pane(
    directory: Path, command: Sequence[str], *, columns: int, variables: Mapping[str, str]
) -> Iterator[Pane]:
    """Run a command in a terminal until the end of the block; then print its exit status there.

    Args:
        directory: for the sockets and the pipe.
        command: a program and its arguments.
        columns: the width of the terminal.
        variables: what is added to the environment, or replaced in it.

    """
    pipe = directory / "output"
    os.mkfifo(pipe)
    output = os.open(pipe, os.O_RDWR)  # for writing, too: it does not end when tmux closes it
    made = Pane(directory / "tmux", output)
    try:
        # COLUMNS and LINES, which pytest's starter may have set, are not those of this terminal.
        every = {"COLUMNS": "", "LINES": "", **variables}
        environment = [word for each in every.items() for word in ("-e", "=".join(each))]
        size = ["-x", f"{columns}", "-y", "12"]
        # The shell waits for the terminal to be watched, so that no output is missed, and survives
        # the Ctrl-C that is for the program.
        line = f"trap : INT; read go; {shlex.join(command)}; echo ended, status $?; read go"
        made.tmux("new-session", "-d", *size, *environment, "sh", "-c", line)
        made.tmux("set-option", "-g", "window-size", "manual")
        made.tmux("pipe-pane", "-o", f"cat >{shlex.quote(str(pipe))}")
        made.press("Enter")
        yield made
    finally:
        subprocess.run(
            [program("tmux"), "-S", f"{directory / 'tmux'}", "kill-server"],
            capture_output=True,
            check=False,
        )
        os.close(output)
