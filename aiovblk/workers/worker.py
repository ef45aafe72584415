"""A worker as its parent sees it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import spawn
from typing import Any, Protocol

from .. import interpreter
from ..threads import run_in_daemon_thread
from .channel import Channel, socket_pair
from .messages import Call, Notification, Result, StartupMessage

logger = logging.getLogger("aiovblk")

EXIT_TIMEOUT = 5.0
"""Seconds for a worker to end that has nothing more to do, before it is killed."""

KILLED_TIMEOUT = 5.0
"""Seconds for a killed worker to end, which the kernel puts off while it waits for a disk."""

Notify = Callable[..., None]


class WorkerLostError(ConnectionError):
    """A worker's process has ended though nobody told it to."""


_NOT_STARTED = (
    "before it could begin: what it says on stderr tells why. A worker imports the main program, so"
    ' what that starts belongs under `if __name__ == "__main__":`'
)


class Service(Protocol):
    """What a worker does: coroutine methods of any name, which the parent calls."""

    async def shutdown(self) -> None:
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
        self._channel: Channel | None = None
        self._spawning: Future[subprocess.Popen[bytes]] | None = None

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
            self._spawning = run_in_daemon_thread(_spawn, theirs)
            try:
                await asyncio.shield(asyncio.wrap_future(self._spawning))
            except BaseException as exc:
                self._release(f"a worker process did not begin: {exc!r}")
                raise
            self._channel = Channel(ours.dup(), self._on_message, self._on_end)
        try:
            self._channel.send(
                StartupMessage(
                    _preparation_data(make_service),
                    is_uvloop=type(loop).__module__.partition(".")[0] == "uvloop",
                    log_level=logger.getEffectiveLevel(),
                )
            )
            try:
                await self.call("start", make_service)
            except WorkerLostError as exc:
                raise WorkerLostError(f"{exc} {_NOT_STARTED}") from None
        except BaseException as exc:
            self._release(f"worker process {self.pid} did not begin: {exc!r}")
            raise

    @property
    def pid(self) -> int:
        """The process id; only of one that has been started."""
        assert self._spawning is not None  # see above
        return self._spawning.result().pid

    def call(
        self, name: str, *arguments: Any, sockets: tuple[socket.socket, ...] = ()
    ) -> asyncio.Future[Any]:
        """Call a method of the service; a future of its result.

        Raises:
            TypeError: an argument cannot be pickled.
            OSError: there is no descriptor left for the sockets on their way.

        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Nobody need ask what became of it.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._gone is not None:
            future.set_exception(WorkerLostError(self._gone))
            return future
        assert self._channel is not None  # only one that has been started is called
        number = next(self._numbers)
        self._channel.send(Call(number, name, _pickled(arguments), len(sockets)), *sockets)
        self._calls[number] = future
        return future

    def kill(self) -> None:
        """End a process that hangs: it is lost, as if it had ended by itself."""
        assert self._channel is not None  # only one that has been started can hang
        assert self._spawning is not None
        self._channel.close()
        self._spawning.result().kill()
        self._on_end()

    async def stop(self) -> None:
        """Let the process end, and wait until it has; after some seconds it is killed.

        One that was never started, or could not be, need not be stopped, but may.
        """
        self.lost.cancel()
        reaping = self._release("the worker process was stopped")
        if reaping is not None:
            await asyncio.wrap_future(reaping)

    def _release(self, reason: str) -> Future[str] | None:
        """Have the process end, if there is one or will be; what waits for it in a thread."""
        self._fail_calls(reason)
        if self._channel is not None:
            self._channel.close()
        return (
            None if self._spawning is None else run_in_daemon_thread(_exit_reason, self._spawning)
        )

    def _on_message(self, message: Any, sockets: list[socket.socket]) -> None:
        match message:
            case Notification(name, arguments):
                self._on_event(name, arguments)
            case logging.LogRecord():
                receiver = logging.getLogger(message.name)
                if receiver.isEnabledFor(message.levelno):
                    receiver.handle(message)
            case Result(number, content, error):
                self._complete(self._calls.pop(number), content, error)

    def _complete(self, call: asyncio.Future[Any], content: bytes, error: str) -> None:
        if call.done():  # whoever waited was cancelled
            return
        if error:
            call.set_exception(_exception(content, error))
            return
        try:
            call.set_result(pickle.loads(content))
        except Exception as exc:
            call.set_exception(RuntimeError(f"what a worker has returned is of no use: {exc!r}"))

    def _on_end(self) -> None:
        assert self._spawning is not None  # there was somebody at the other end
        how = asyncio.wrap_future(run_in_daemon_thread(_exit_reason, self._spawning))
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
    # The user's own modules are found when it is prepared, with this process's sys.path of then.
    code = "from aiovblk.workers.child import main; main(int(sys.argv[1]))"
    with theirs:
        return subprocess.Popen(
            interpreter.command(code, str(theirs.fileno())),
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            # Ctrl-C and Ctrl-Z at a terminal are for the parent, which needs the worker to unmount.
            process_group=0,
        )


def _exit_reason(spawning: Future[subprocess.Popen[bytes]]) -> str:
    """Wait for a process that ought to end, or that need not begin any more; how it did."""
    if spawning.exception() is not None:
        return "did not begin"
    status = _reap(spawning.result())
    if status is None:
        return "hangs in the kernel, which does not let it be killed"
    if status < 0:
        return f"was ended by {_signal_name(-status)}"
    return f"ended with status {status}"


def _reap(process: subprocess.Popen[bytes]) -> int | None:
    with suppress(subprocess.TimeoutExpired):
        return process.wait(EXIT_TIMEOUT)
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(KILLED_TIMEOUT)
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # between the real-time signals that have names


def _exception(content: bytes, words: str) -> Exception:
    """What to raise here for what was raised in the worker: the same, where that can be."""
    with suppress(Exception):
        raised = pickle.loads(content)
        # A future refuses StopIteration, and would take CancelledError for its own.
        if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
            return raised
    return RuntimeError(words)
