"""A worker as its parent sees it."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import spawn
from typing import Any, Protocol

from ..threads import in_thread
from .channel import Channel, socket_pair
from .messages import Call, Event, Outcome, Preparation

logger = logging.getLogger("aiovblk")

ENDING_TIMEOUT = 5.0
"""Seconds for a worker to end that has nothing more to do."""

Notify = Callable[..., None]


class WorkerLostError(ConnectionError):
    """A worker's process has ended though nobody told it to."""


class Service(Protocol):
    """What a worker does: coroutine methods of any name, which the parent calls."""

    async def leave(self) -> None:
        """Let go of everything: the parent is gone, or needs it no longer."""


MakeService = Callable[[Notify], Service]
"""Called in the worker with a function that tells the parent something: a name, and arguments."""


class Worker:
    """A process of its own that runs a service.

    Concurrency: any number of calls at once.

    Args:
        on_event: called with a name and arguments, when the service tells something.

    Attributes:
        lost: done when the process ends before :meth:`stop`; its result says how, in words.

    """

    def __init__(self, on_event: Callable[[str, tuple[Any, ...]], None]) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_event = on_event
        self._gone: str | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._channel: Channel
        self._process: subprocess.Popen[bytes]

    async def start(self, make_service: MakeService) -> None:
        """Start the process and its service.

        Args:
            make_service: picklable, so a function of a module, or a partial() of one.

        Raises:
            TypeError: it cannot be pickled; the message says why.
            WorkerLostError: the process ended at once.
            Exception: what ``make_service`` raises.

        Cancellation: the process ends.

        """
        loop = asyncio.get_running_loop()
        ours, theirs = socket_pair()
        with ours:
            # In a thread: from a large process it takes a while.
            spawning = in_thread(_spawn, theirs)
            try:
                self._process = await asyncio.shield(asyncio.wrap_future(spawning))
            except BaseException:
                spawning.add_done_callback(_reap_spawned)
                raise
            self._channel = Channel(ours.dup(), self._on_message, self._on_end)
        try:
            self._channel.send(
                Preparation(
                    _preparation_data(make_service),
                    is_uvloop=type(loop).__module__.partition(".")[0] == "uvloop",
                    log_level=logger.getEffectiveLevel(),
                )
            )
            await self.call("start", make_service)
        except BaseException:
            self._channel.close()
            in_thread(_reap, self._process)
            raise

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def call(
        self, name: str, *arguments: Any, sockets: tuple[socket.socket, ...] = ()
    ) -> asyncio.Future[Any]:
        """Call a method of the service; a future of its result.

        Raises:
            TypeError: an argument cannot be pickled.

        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Nobody need ask what became of it.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._gone is not None:
            future.set_exception(WorkerLostError(self._gone))
            return future
        number = next(self._numbers)
        self._channel.send(Call(number, name, _pickled(arguments)), *sockets)
        self._calls[number] = future
        return future

    async def stop(self) -> None:
        """Let the process end, and wait until it has; after some seconds it is killed."""
        self._channel.close()
        self.lost.cancel()
        self._fail_calls(f"worker process {self.pid} was stopped")
        await asyncio.wrap_future(in_thread(_reap, self._process))

    def _on_message(self, message: Any, sockets: list[socket.socket]) -> None:
        match message:
            case Event(name, arguments):
                self._on_event(name, arguments)
            case logging.LogRecord():
                receiver = logging.getLogger(message.name)
                if receiver.isEnabledFor(message.levelno):
                    receiver.handle(message)
            case Outcome(number, content, error):
                self._complete(self._calls.pop(number), content, error)

    def _complete(self, call: asyncio.Future[Any], content: bytes, error: str) -> None:
        if call.done():  # whoever waited was cancelled
            return
        try:
            result = pickle.loads(content)
        except Exception:
            result = RuntimeError(error)
        if error:
            call.set_exception(result)
        else:
            call.set_result(result)

    def _on_end(self) -> None:
        how = asyncio.wrap_future(in_thread(_how_it_ended, self._process))
        how.add_done_callback(self._on_lost)

    def _on_lost(self, how: asyncio.Future[str]) -> None:
        if self.lost.done():
            return
        reason = f"worker process {self.pid} {how.result()}"
        self.lost.set_result(reason)
        self._fail_calls(reason)

    def _fail_calls(self, reason: str) -> None:
        self._gone = self._gone or reason
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.done():
                call.set_exception(WorkerLostError(reason))


def _preparation_data(make_service: MakeService) -> dict[str, Any]:
    data = spawn.get_preparation_data("aiovblk worker")
    del data["authkey"]  # multiprocessing's own, which refuses to be pickled
    if b"__main__" not in _pickled(make_service):
        # Nothing is needed of the main module, so it need not be run again.
        data.pop("init_main_from_name", None)
        data.pop("init_main_from_path", None)
    return data


def _pickled(what: object) -> bytes:
    try:
        return pickle.dumps(what)
    except Exception as exc:
        raise TypeError(
            f"{exc}; what a worker process is to use must be a function or a class of a module,"
            " or a functools.partial of one"
        ) from exc


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    code = (
        "import sys, json; sys.path[:] = json.loads(sys.argv[1]);"
        "from aiovblk.workers.child import main; main(int(sys.argv[2]))"
    )
    with theirs:
        return subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(sys.path), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            # Ctrl-C and Ctrl-Z at a terminal are for the parent, which needs the worker to unmount.
            process_group=0,
        )


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process that ought to end."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(ENDING_TIMEOUT)
    process.kill()
    return process.wait()


def _reap_spawned(spawning: Future[subprocess.Popen[bytes]]) -> None:
    if spawning.exception() is None:
        _reap(spawning.result())


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    status = _reap(process)
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
