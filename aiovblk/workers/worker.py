"""The parent's side of a worker process: start it, call its service, notice its end, stop it."""

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
from ..aio.tasks import wait_shielded
from ..threads import run_in_daemon_thread
from .channel import Channel, socket_pair
from .messages import Call, Notification, Result, StartupMessage

logger = logging.getLogger("aiovblk")

EXIT_TIMEOUT = 5.0
"""Seconds for a worker process to exit after its channel is closed, before it is killed."""

KILLED_TIMEOUT = 5.0
"""Seconds for a killed process to exit, which the kernel delays while it waits for a disk."""

Notify = Callable[..., None]
"""Sends the parent a notification from a service: a name, and arguments that can be pickled."""


class WorkerLostError(ConnectionError):
    """A worker process has ended unexpectedly, or was stopped while a call was pending."""


_NOT_STARTED = (
    "before it had started: see its output on stderr. A worker imports the main program, so put"
    ' what that program starts under `if __name__ == "__main__":`'
)


class Service(Protocol):
    """The object that runs in a worker: coroutine methods of any name, which the parent calls."""

    async def shutdown(self) -> None:
        """Release everything, gracefully: the parent has ended, or has stopped the worker."""


MakeService = Callable[[Notify], Service]
"""Makes the service; called in the worker process, with the function that notifies the parent."""


class Worker:
    """Start and control one worker process, which runs a service.

    Concurrency: any number of calls at once, on one event loop.

    Args:
        on_event: called with the name and arguments of each notification of the service.

    Attributes:
        lost: done when the process ends before :meth:`stop`; its result says how, in words.
            Cancelled by :meth:`stop`.

    """

    def __init__(self, on_event: Callable[[str, tuple[Any, ...]], None]) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_event = on_event
        self._end_reason: str | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._channel: Channel | None = None
        self._spawning: Future[subprocess.Popen[bytes]] | None = None

    async def start(self, make_service: MakeService) -> None:
        """Start the process and its service.

        Args:
            make_service: makes the service. Must be picklable: a function of a module, or a
                functools.partial() of one.

        Raises:
            TypeError: ``make_service`` cannot be pickled; the message says why.
            WorkerLostError: the process ended while it started.
            Exception: what ``make_service`` raises.

        Cancellation: ends the process.

        """
        loop = asyncio.get_running_loop()
        ours, theirs = socket_pair()
        with ours:
            # In a thread: it takes a while to start a process from a large one.
            self._spawning = run_in_daemon_thread(_spawn, theirs)
            try:
                await wait_shielded(asyncio.wrap_future(self._spawning))
            except BaseException as exc:
                self._release(f"a worker process did not start: {exc!r}")
                raise
            self._channel = Channel(ours.dup(), self._on_message, self._on_end)
        try:
            self._channel.send(
                StartupMessage(
                    _startup_data(make_service),
                    is_uvloop=type(loop).__module__.partition(".")[0] == "uvloop",
                    log_level=logger.getEffectiveLevel(),
                )
            )
            try:
                await self.call("start", make_service)
            except WorkerLostError as exc:
                raise WorkerLostError(f"{exc} {_NOT_STARTED}") from None
        except BaseException as exc:
            self._release(f"worker process {self.pid} did not start: {exc!r}")
            raise

    @property
    def pid(self) -> int:
        """The process id; only after :meth:`start` has spawned the process."""
        assert self._spawning is not None  # see above
        return self._spawning.result().pid

    def call(
        self, name: str, *arguments: Any, sockets: tuple[socket.socket, ...] = ()
    ) -> asyncio.Future[Any]:
        """Call a method of the service in the worker process.

        Args:
            name: of the method.
            arguments: positional arguments; must be picklable.
            sockets: passed as further positional arguments; the worker gets duplicates.

        Returns:
            A future of the result. Its exception is the method's, with a note of its traceback; a
            RuntimeError with its ``repr()`` if it cannot be unpickled here; or a
            :class:`WorkerLostError` if the process ends first.

        Raises:
            TypeError: an argument cannot be pickled.
            OSError: there is no descriptor left to duplicate the sockets.

        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Mark its exception as retrieved: callers need not await the result.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._end_reason is not None:
            future.set_exception(WorkerLostError(self._end_reason))
            return future
        assert self._channel is not None  # calls are made only after start()
        number = next(self._numbers)
        self._channel.send(Call(number, name, _pickle(arguments), len(sockets)), *sockets)
        self._calls[number] = future
        return future

    def kill(self) -> None:
        """Kill a process that hangs; it is reported as :attr:`lost`."""
        assert self._channel is not None  # called only after start()
        assert self._spawning is not None
        self._channel.close()
        self._spawning.result().kill()
        self._on_end()

    async def stop(self) -> None:
        """Stop the process gracefully, and wait until it has exited.

        It is killed after :data:`EXIT_TIMEOUT` seconds, and waited for at most
        :data:`KILLED_TIMEOUT` more. Pending calls fail with
        :class:`WorkerLostError`. No-op if the process was never started, or could not be.
        """
        self.lost.cancel()
        reaping = self._release("the worker process was stopped")
        if reaping is not None:
            await asyncio.wrap_future(reaping)

    def _release(self, reason: str) -> Future[str] | None:
        """Make the process end, if there is or will be one; returns the result of its wait."""
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
                target = logging.getLogger(message.name)
                if target.isEnabledFor(message.levelno):
                    target.handle(message)
            case Result(number, content, error):
                self._complete(self._calls.pop(number), content, error)

    def _complete(self, call: asyncio.Future[Any], content: bytes, error: str) -> None:
        if call.done():  # the caller was cancelled
            return
        if error:
            call.set_exception(_load_exception(content, error))
            return
        try:
            call.set_result(pickle.loads(content))
        except Exception as exc:
            call.set_exception(RuntimeError(f"cannot unpickle the result of a worker: {exc!r}"))

    def _on_end(self) -> None:
        assert self._spawning is not None  # a process was at the other end
        exit_reason = asyncio.wrap_future(run_in_daemon_thread(_exit_reason, self._spawning))
        exit_reason.add_done_callback(self._on_lost)

    def _on_lost(self, exit_reason: asyncio.Future[str]) -> None:
        if self.lost.done():
            return
        reason = f"worker process {self.pid} {exit_reason.result()}"
        self.lost.set_result(reason)
        self._fail_calls(reason)

    def _fail_calls(self, reason: str) -> None:
        self._end_reason = self._end_reason or reason
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.done():
                call.set_exception(WorkerLostError(reason))


def _startup_data(make_service: MakeService) -> dict[str, Any]:
    data = spawn.get_preparation_data("aiovblk worker")
    del data["authkey"]  # multiprocessing's own type, which refuses to be pickled
    if b"__main__" not in _pickle(make_service):
        # The service needs nothing of the main module, so the worker need not run it again.
        data.pop("init_main_from_name", None)
        data.pop("init_main_from_path", None)
    return data


def _pickle(value: object) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as exc:
        raise TypeError(
            f"{exc}; what a worker process is to use must be a function or a class of a module,"
            " or a functools.partial of one"
        ) from exc


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    # The user's modules are found once StartupMessage has set sys.path to this process's.
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
    """Wait for a process that is to end, kill it if it does not, and say in words how it ended."""
    if spawning.exception() is not None:
        return "did not start"
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
        return f"signal {number}"  # a real-time signal; only SIGRTMIN and SIGRTMAX have names


def _load_exception(content: bytes, description: str) -> Exception:
    """Unpickle an exception of the worker; a RuntimeError with its description if that fails."""
    with suppress(Exception):
        raised = pickle.loads(content)
        # A future refuses StopIteration, and takes CancelledError as its own cancellation.
        if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
            return raised
    return RuntimeError(description)
