"""The worker process itself: runs a service for its parent process.

Invariants:

* It ends when the parent closes the channel or ends, not by SIGINT, SIGTERM or SIGHUP: the parent
  decides, since the worker is needed until the device is unmounted.
* Every call gets a result, whatever its method raises.
* What is logged here is logged by the parent.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pickle
import signal
import socket
import threading
import traceback
from contextlib import suppress
from logging.handlers import QueueHandler
from multiprocessing import spawn
from queue import SimpleQueue
from typing import Any

import uvloop

from .channel import MAX_MESSAGE, Channel, receive_first
from .messages import Call, Notification, Result, StartupMessage
from .worker import MakeService, Service

MAX_ERROR_REPR = 4096
"""Maximum characters of an exception's ``repr()`` in a result."""


def main(descriptor: int) -> None:
    """Run the worker process: serve the parent until it closes the channel or ends.

    Args:
        descriptor: the worker's end of the channel.

    """
    # The parent decides when a worker ends: it is needed until the device is unmounted. (Handlers,
    # not SIG_IGN, which programs that the device starts would inherit.)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    # The parent's thread that started this process had all signals blocked; programs that the
    # device starts would inherit that too.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    try:
        startup: StartupMessage = receive_first(sock)
    except EOFError:
        return
    spawn.prepare(startup.data)
    factory = uvloop.new_event_loop if startup.is_uvloop else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_Child(startup).run(sock))


class _Child:
    """Run the service, and answer the parent's calls."""

    def __init__(self, startup: StartupMessage) -> None:
        self._service: Service | None = None
        self._log_level = startup.log_level
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, sock: socket.socket) -> None:
        """Answer calls until the parent closes the channel or ends, then shut the service down."""
        ended = asyncio.Event()
        self._channel = Channel(sock, self._on_message, ended.set)
        logging.getLogger().addHandler(_Forwarder(asyncio.get_running_loop(), self._channel))
        logging.getLogger().setLevel(self._log_level)
        await ended.wait()
        if self._service is not None:
            await self._service.shutdown()

    def _on_message(self, call: Call, sockets: list[socket.socket]) -> None:
        task = asyncio.create_task(self._answer(call, sockets))
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, call: Call, sockets: list[socket.socket]) -> None:
        try:
            if len(sockets) < call.sockets:
                raise OSError(errno.EMFILE, "the worker has too many files open to take a socket")
            arguments = pickle.loads(call.arguments)
            if call.name == "start":
                make_service: MakeService = arguments[0]
                self._service = make_service(self._notify)
                result = None
            else:
                result = await getattr(self._service, call.name)(*arguments, *sockets)
            self._channel.send(Result(call.number, pickle.dumps(result)))
        except BaseException as exc:  # of any kind, since the parent waits for a result
            exc.add_note(f"in worker process {os.getpid()}:\n{traceback.format_exc()}")
            self._channel.send(Result(call.number, _pickle_exception(exc), _format_error(exc)))
            # CancelledError ends here: these tasks are never cancelled, but a future that the
            # service or a device factory awaits may be.
            if isinstance(exc, GeneratorExit | KeyboardInterrupt | SystemExit):
                raise

    def _notify(self, name: str, *arguments: Any) -> None:
        self._channel.send(Notification(name, arguments))


def _pickle_exception(exc: BaseException) -> bytes:
    try:
        content = pickle.dumps(exc)
    except Exception:
        return b""  # the parent makes do with its repr()
    return content if len(content) <= MAX_MESSAGE // 4 else b""


def _format_error(exc: BaseException) -> str:
    try:
        return repr(exc)[:MAX_ERROR_REPR]
    except Exception:
        return type(exc).__name__


class _Forwarder(QueueHandler):
    """Forward log records to the parent, whose logging configuration applies."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel) -> None:
        super().__init__(SimpleQueue())  # required by the base class, not used
        self._loop = loop
        self._thread = threading.get_ident()
        self._channel = channel

    def enqueue(self, record: logging.LogRecord) -> None:
        if threading.get_ident() == self._thread:
            self._channel.send(record)
            return
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._channel.send, record)
