"""Worker processes: calls, what they tell, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiovblk.workers import Worker, WorkerLostError, process
from aiovblk.workers.channel import Channel, socket_pair

from .workshop import Broken, Services

pytestmark = pytest.mark.deadline(60)

Events = asyncio.Queue[tuple[str, tuple[Any, ...]]]


@asynccontextmanager
async def at_work(log: Path, events: Events | None = None) -> AsyncIterator[Worker]:
    worker = Worker(lambda name, arguments: (events or Events()).put_nowait((name, arguments)))
    await worker.start(partial(Services, log))
    try:
        yield worker
    finally:
        await worker.stop()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


async def test_calls_results_and_exceptions_travel(
    log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events = Events()
    async with at_work(log, events) as worker:
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
        with pytest.raises(AttributeError, match="no_such_method"):
            await worker.call("no_such_method")
        with pytest.raises(TypeError, match="must be a function or a class of a module"):
            worker.call("add", lambda: 1, 2)
        with pytest.raises(Exception, match="lambda"):
            await worker.call("give_back", "lambda")
        with pytest.raises(ValueError, match="too large"):
            await worker.call("give_back", "large")
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
    ("how", "words"), [("exit", "ended with status 3"), ("kill", "was ended by SIGKILL")]
)
async def test_the_loss_of_a_worker_ends_its_calls(log: Path, how: str, words: str) -> None:
    async with at_work(log) as worker:
        waiting = worker.call("wait")
        if how == "exit":
            worker.call("exit", 3)
        else:
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError, match=f"worker process {worker.pid} {words}"):
            await waiting
        assert words in worker.lost.result()
        with pytest.raises(WorkerLostError, match=words):
            await worker.call("add", 1, 2)


async def test_what_cannot_begin_is_told_and_leaves_nothing(log: Path) -> None:
    worker = Worker(print)
    with pytest.raises(PermissionError, match="not today"):
        await worker.start(Broken)
    worker = Worker(print)
    with pytest.raises(TypeError, match="must be a function or a class of a module"):
        await worker.start(lambda tell: Services(log, tell))
    with pytest.raises(ChildProcessError):
        while True:
            await asyncio.to_thread(os.waitpid, -1, 0)


async def test_signals_that_end_the_parent_do_not_end_its_workers(log: Path) -> None:
    async with at_work(log) as worker:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(worker.pid, number)
        assert await worker.call("add", 1, 2) == 3
        assert os.getpgid(worker.pid) != os.getpgid(0)


async def test_a_worker_that_hangs_is_killed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ENDING_TIMEOUT", 0.1)
    async with at_work(log) as worker:
        worker.call("hang")
        pid = worker.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


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
