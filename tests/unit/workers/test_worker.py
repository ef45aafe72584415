"""Worker processes: calls, notifications, and how they end."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiovblk.workers import Worker, WorkerLostError
from aiovblk.workers import worker as worker_module
from aiovblk.workers.channel import Channel, socket_pair

from ...support.worker_services import Broken, Exhausted, Leaving, Services

pytestmark = [pytest.mark.slow, pytest.mark.deadline(120), pytest.mark.either_loop]

Events = asyncio.Queue[tuple[str, tuple[Any, ...]]]


@asynccontextmanager
async def running_worker(log: Path, events: Events | None = None) -> AsyncIterator[Worker]:
    worker = Worker(lambda name, arguments: (events or Events()).put_nowait((name, arguments)))
    await worker.start(partial(Services, log))
    try:
        yield worker
    finally:
        await worker.stop()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


async def test_calls_results_and_exceptions_are_passed(
    log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events = Events()
    async with running_worker(log, events) as worker:
        assert worker.pid != os.getpid()
        assert await asyncio.gather(*(worker.call("add", n, 1) for n in range(20))) == list(
            range(1, 21)
        )
        with pytest.raises(LookupError, match="no such key") as caught:
            await worker.call("fail", "plain")
        assert "in worker process" in caught.value.__notes__[0]
        with pytest.raises(RuntimeError, match="1 and 2"):
            await worker.call("fail", "picky")
        with pytest.raises(RuntimeError, match="cannot travel"):
            await worker.call("fail", "unpicklable")
        with pytest.raises(RuntimeError, match=r"LookupError.*large x"):
            await worker.call("fail", "large")
        with pytest.raises(RuntimeError, match=r"^Wordless$"):
            await worker.call("fail", "wordless")
        with pytest.raises(RuntimeError, match="CancelledError"):
            await worker.call("fail", "cancelled")
        with pytest.raises(AttributeError, match="no_such_method"):
            await worker.call("no_such_method")
        with pytest.raises(TypeError, match="must be a function or a class of a module"):
            worker.call("add", lambda: 1, 2)
        with pytest.raises(Exception, match="lambda"):
            await worker.call("give_back", "lambda")
        with pytest.raises(ValueError, match="too large"):
            await worker.call("give_back", "large")
        with pytest.raises(
            RuntimeError, match=r"cannot unpickle the result .*: TypeError\(.*Picky"
        ):
            await worker.call("give_back", "picky")
        await worker.call("say", "hello")
        assert await events.get() == ("said", ("hello", worker.pid))
        assert [(record.name, record.message) for record in caplog.records] == [
            ("aiovblk.test", "hello")
        ]
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        assert (await worker.call("loop")).startswith(loop)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            reading = worker.call("read", sockets=(theirs,))
            theirs.close()
            ours.send(b"by hand")
            assert await reading == b"by hand"
            assert ours.recv(1) == b""  # nobody else has it
        waiting = worker.call("wait")
    with pytest.raises(WorkerLostError, match="stopped"):
        await waiting
    assert log.read_text() == "left"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "ended with status 3"),
        (signal.SIGKILL, "was ended by SIGKILL"),
        (signal.SIGRTMIN + 1, f"was ended by signal {signal.SIGRTMIN + 1}"),
    ],
)
async def test_calls_of_a_lost_worker_fail(log: Path, number: int, words: str) -> None:
    async with running_worker(log) as worker:
        waiting = worker.call("wait")
        if number:
            os.kill(worker.pid, number)
        else:
            worker.call("exit", 3)
        with pytest.raises(WorkerLostError, match=f"worker process {worker.pid} {words}"):
            await waiting
        assert words in worker.lost.result()
        with pytest.raises(WorkerLostError, match=words):
            await worker.call("add", 1, 2)


async def test_failed_start_is_reported_and_leaves_no_process(log: Path) -> None:
    worker = Worker(print)
    with pytest.raises(PermissionError, match="not today"):
        await worker.start(Broken)
    with pytest.raises(WorkerLostError, match="did not start: PermissionError"):
        await worker.call("add", 1, 2)
    worker = Worker(print)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await worker.start(Exhausted)
    worker = Worker(print)
    with pytest.raises(TypeError, match="must be a function or a class of a module"):
        await worker.start(lambda tell: Services(log, tell))
    with pytest.raises(ChildProcessError):
        while True:
            await asyncio.to_thread(os.waitpid, -1, 0)


async def test_process_that_ends_during_its_start_is_reported_with_advice() -> None:
    worker = Worker(print)
    with pytest.raises(WorkerLostError, match=r"ended with status 3 before .* __name__ == "):
        await worker.start(Leaving)
    await worker.stop()


async def test_worker_that_was_never_started_can_be_stopped() -> None:
    worker = Worker(print)
    await worker.stop()
    assert worker.lost.cancelled()
    with pytest.raises(WorkerLostError, match="stopped"):
        await worker.call("add", 1, 2)


@pytest.mark.parametrize("seconds", [0, 0.001, 0.01, 0.1])
async def test_worker_whose_start_was_cancelled_can_be_stopped(log: Path, seconds: float) -> None:
    worker = Worker(print)
    starting = asyncio.create_task(worker.start(partial(Services, log)))
    await asyncio.wait([starting], timeout=seconds)
    starting.cancel()
    await asyncio.wait([starting])
    await worker.stop()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222 (it does not wait)


async def test_worker_that_cannot_be_spawned_can_be_stopped(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    worker = Worker(print)
    with pytest.raises(FileNotFoundError):
        await worker.start(partial(Services, log))
    await worker.stop()


async def test_signals_that_end_the_parent_do_not_end_its_workers(log: Path) -> None:
    async with running_worker(log) as worker:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(worker.pid, number)
        assert await worker.call("add", 1, 2) == 3
        assert os.getpgid(worker.pid) != os.getpgid(0)


async def test_program_that_a_worker_starts_can_be_terminated(log: Path) -> None:
    async with running_worker(log) as worker:
        assert await worker.call("run_and_end", ["sleep", "1000"]) == -signal.SIGTERM


async def test_worker_that_hangs_is_killed_by_stop(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "EXIT_TIMEOUT", 0.1)
    async with running_worker(log) as worker:
        worker.call("hang")
        pid = worker.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_worker_that_hangs_can_be_killed(log: Path) -> None:
    async with running_worker(log) as worker:
        hanging = worker.call("hang")
        worker.kill()
        with pytest.raises(WorkerLostError, match="was ended by SIGKILL"):
            await hanging
        assert "was ended by SIGKILL" in await worker.lost


async def test_worker_that_cannot_be_killed_is_not_waited_for(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_worker(log) as worker:
        with monkeypatch.context() as patched:
            # As while it waits for a disk.
            patched.setattr(subprocess.Popen, "kill", lambda process: None)
            patched.setattr(worker_module, "EXIT_TIMEOUT", 0.1)
            patched.setattr(worker_module, "KILLED_TIMEOUT", 0.1)
            worker.call("hang")
            worker.kill()
            assert "hangs in the kernel" in await worker.lost
            await worker.stop()
        # The kill succeeds after all; stopping it once more, as the block does, leaves no zombie.
        os.kill(worker.pid, signal.SIGKILL)


async def test_socket_that_a_worker_has_no_descriptor_for_is_an_error(log: Path) -> None:
    async with running_worker(log) as worker:
        _, hard = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (0, hard))
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(OSError, match="too many files open"):
            await worker.call("read", sockets=(theirs,))
        assert await worker.call("add", 1, 2) == 3


async def test_messages_wait_for_a_slow_reader() -> None:
    ours, theirs = socket_pair()
    ended = asyncio.Event()
    sending = Channel(ours, lambda message, sockets: None, ended.set)
    messages = [(number, bytes(100_000)) for number in range(100)]
    with socket.socket() as extra:
        for message in messages:
            sending.send(message, extra)
    received: list[Any] = []
    complete = asyncio.Event()

    def receive(message: Any, sockets: list[socket.socket]) -> None:
        received.append(message)
        for sock in sockets:
            sock.close()
        if len(received) == len(messages):
            complete.set()

    receiving = Channel(theirs, receive, lambda: None)
    await complete.wait()
    assert received == messages
    receiving.close()
    await ended.wait()
    sending.send("into the void")
    receiving.close()
