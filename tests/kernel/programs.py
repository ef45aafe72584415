"""Python programs that the tests run, as forks of a process that has everything imported.

See `fork_server.py`; what has to be a new interpreter is started by `support.interpreter`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys


class Input:
    """The end of a pipe that a program reads from."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def write(self, data: bytes) -> None:
        assert self._descriptor is not None
        os.write(self._descriptor, data)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None


class Fork:
    """A process: what `asyncio.subprocess.Process` has that the tests use.

    It is no child of this process, which cannot wait for it by os.waitpid().
    """

    def __init__(self, status: int, source: int, sink: int) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self.stdin = Input(sink)
        self.stdout = asyncio.StreamReader()
        self._status = status
        self._source = source
        self._told = b""
        loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(status, self._on_status)

    async def begin(self) -> None:
        """Wait until there is such a process."""
        self._reading, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self.stdout), os.fdopen(self._source, "rb", 0)
        )
        await self._begun

    def _on_status(self) -> None:
        read = os.read(self._status, 64)
        self._told += read
        numbers = self._told.split(b"\n")[:-1]
        if numbers and not self._begun.done():
            self.pid = int(numbers[0])
            self._begun.set_result(None)
        if len(numbers) == 2:
            self.returncode = int(numbers[1])
            self._ended.set_result(None)
        if len(numbers) == 2 or not read:
            self._forget_status()

    def _forget_status(self) -> None:
        asyncio.get_running_loop().remove_reader(self._status)
        os.close(self._status)
        self._status = -1
        for each in (self._begun, self._ended):
            if not each.done():
                each.set_exception(RuntimeError("the fork server has ended"))

    def send_signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        await asyncio.shield(self._ended)
        assert self.returncode is not None  # it has ended
        return self.returncode

    def close(self) -> None:
        """Close the pipes of a process that has ended."""
        self.stdin.close()
        self._reading.close()
        if self._status >= 0:
            self._forget_status()


class ForkServer:
    """The process whose forks the programs are."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    __name__.replace("programs", "fork_server"),
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
                # As those of its forks are, or their buffers would be those of a terminal.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )

    async def start(self, words: tuple[str, ...], environment: dict[str, str]) -> Fork:
        """Start `python WORDS`, with an environment of its own."""
        request = {"words": words, "environment": environment, "directory": os.getcwd()}
        pipes = [os.pipe() for _ in range(3)]
        (stdin, sink), (source, stdout), (status, told) = pipes
        theirs = [stdin, stdout, told]
        standard = [stdin, stdout, stdout, told]
        socket.send_fds(self._socket, [json.dumps(request).encode()], standard)
        for each in theirs:
            os.close(each)
        fork = Fork(status, source, sink)
        await fork.begin()
        return fork

    def end(self) -> None:
        self._socket.close()
        self._process.communicate()
