"""Servers with worker processes: workers that hang or cannot be replaced; reports of clients."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import resource
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk.dispatch import HandlerLimits, Stats
from aiovblk.server.connection import make_settings
from aiovblk.server.exports import exports_of
from aiovblk.server.workers import pool as serving
from aiovblk.server.workers.pool import WorkerPool
from aiovblk.server.workers.service import MAX_REPORTS, ClientReport, ClientService
from aiovblk.storage import MemoryDevice
from aiovblk.workers import Worker, worker
from aiovblk.workers.channel import MAX_MESSAGE
from aiovblk.workers.messages import Notification

from ...support.network_client import READ, connected, serve, using
from ...support.polling import until
from ...support.worker_services import (
    FileOfAll,
    load_or_hang,
    load_or_raise,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deadline(120),
    pytest.mark.either_loop,
    pytest.mark.usefixtures("no_child_is_left"),
]


def worker_of(server: aiovblk.Server) -> Worker:
    assert isinstance(server._clients, WorkerPool)
    return server._clients._slots[0].worker


# The pool


async def test_a_server_ends_although_a_worker_hangs(
    path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving, "WORKER_HANG_TIMEOUT", 0.1)
    export = partial(FileOfAll, image)
    async with (
        serve(export, unix=path, workers=1, drain_timeout=0.1) as server,
        using(path) as client,
    ):
        await client.read(0, 512)
        os.kill(worker_of(server).pid, signal.SIGSTOP)
        server.close()
        await server.wait()
        assert "hangs: no answer in" in caplog.text
        assert "1 connections are lost with it" in caplog.text


async def test_a_worker_that_does_not_hang_aborts_and_unmounts(
    path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving, "WORKER_HANG_TIMEOUT", 0.01)
    async with (
        serve(partial(FileOfAll, image), unix=path, workers=1) as server,
        using(path) as client,
    ):
        client.send(READ, 512 * 14, 512)
        await until(lambda: server.stats.in_flight == 1)
        server.close(force=True)
        await client.closed()
        await server.wait()
    assert image.with_suffix(".log").read_text().count("unmount") == 1
    assert "killing" not in caplog.text


@pytest.mark.parametrize("whose", ["the server's", "the worker's"])
async def test_a_client_that_cannot_be_handed_over_is_not_counted(
    path: Path,
    image: Path,
    whose: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve(partial(FileOfAll, image), unix=path, workers=1) as server:
        with monkeypatch.context() as patched:
            let_have_none(patched, None if whose == "the server's" else worker_of(server).pid)
            async with connected(path) as client:
                assert await client.closed() == b""
        await until(
            lambda: "cannot hand a client over to a worker process: [Errno 24]" in caplog.text
        )
        assert server._clients.count() == 0
        let_have_all(worker_of(server).pid)
        async with using(path) as client:
            assert await client.read(0, 512) == bytes(512)


def let_have_none(patched: pytest.MonkeyPatch, pid: int | None) -> None:
    """Let this process, or another, have no descriptor for a socket on its way."""
    if pid is None:

        def refuse(descriptor: int) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        patched.setattr(os, "dup", refuse)
    else:
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, hard))


def let_have_all(pid: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


async def test_a_worker_that_cannot_be_replaced_is_logged(
    path: Path, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls = partial(load_or_raise, image)
    async with serve(
        partial(FileOfAll, image), unix=path, workers=1, tls=tls, require_tls=False
    ) as server:
        image.unlink()
        os.kill(worker_of(server).pid, signal.SIGKILL)
        await until(lambda: "cannot restart the worker process: LookupError" in caplog.text)
        async with connected(path) as client:
            assert await client.closed() == b""
        assert "no worker process is running" in caplog.text


async def test_a_server_ends_while_a_worker_is_being_replaced(
    path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "EXIT_TIMEOUT", 0.5)
    hanging = Path(f"{image}.hanging")
    tls = partial(load_or_hang, image, hanging)
    async with serve(
        partial(FileOfAll, image), unix=path, workers=1, tls=tls, require_tls=False
    ) as server:
        image.unlink()
        os.kill(worker_of(server).pid, signal.SIGKILL)
        await until(hanging.exists)


# Reports of clients


def largest_report(number: int) -> ClientReport:
    stats = Stats()
    for name, latency in stats.latency.items():
        stats.errors_by_command[name] = 1 << 40
        for magnitude in range(45):  # hours, in nanoseconds
            for quarter in range(4, 8):
                latency.add(quarter << magnitude, 1 << 40)
    return ClientReport((1 << 62) + number, "a peer" * 10, f"{number:04096}", stats)


def test_a_message_holds_as_many_reports_as_are_sent_at_once() -> None:
    reports = [largest_report(number) for number in range(MAX_REPORTS)]
    assert len(pickle.dumps(Notification("clients", (reports,)))) <= MAX_MESSAGE // 2


class ParentMessages:
    """The messages of a service to its parent."""

    def __init__(self) -> None:
        self.clients: set[int] = set()
        self.left = 0

    def __call__(self, name: str, *arguments: Any) -> None:
        match name, *arguments:
            case "clients", reports:
                assert len(reports) <= MAX_REPORTS
                self.clients |= {report.number for report in reports}
            case "gone", number:
                self.clients.remove(number)
            case "left", *_:
                self.left += 1


def service(notify: Callable[..., None]) -> ClientService:
    settings = partial(
        make_settings,
        exports=exports_of(MemoryDevice(4096)),
        tls=None,
        require_tls=False,
        handshake_timeout=10,
        drain_timeout=5,
        limits=HandlerLimits(concurrency=1, handler_timeout=None, slow_request=None),
        connection_memory=1 << 20,
        memory=1 << 20,
    )
    return ClientService(settings, notify)


async def test_many_clients_are_reported_and_counted() -> None:
    messages, number = ParentMessages(), 3 * MAX_REPORTS + 1
    serving = service(messages)
    pairs = [socket.socketpair() for _ in range(number)]
    for at, (sock, _) in enumerate(pairs):
        await serving.accept(at, sock)
    await until(lambda: len(messages.clients) == number)
    for _, client in pairs:
        client.close()
    await until(lambda: messages.left == number)
    assert not messages.clients
    await serving.shutdown()


async def test_a_client_whose_report_cannot_be_sent_is_counted() -> None:
    messages = ParentMessages()

    def notify(name: str, *arguments: Any) -> None:
        if name in ("clients", "gone", "stats"):
            raise ValueError("a message is too large")
        messages(name, *arguments)

    serving = service(notify)
    ours, theirs = socket.socketpair()
    await serving.accept(1, ours)
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    theirs.close()
    await until(lambda: messages.left == 1)
    await serving.shutdown()


async def test_events_are_sent_once_there_is_a_listener() -> None:
    messages: list[tuple[Any, ...]] = []
    serving = service(lambda *message: messages.append(message))
    for number in (1, 2):
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(bytes(20))
            await serving.accept(number, ours)
            await until(lambda: [name for name, *_ in messages].count("left") == number)  # noqa: B023
        await serving.listen()
    await serving.shutdown()
    [refusals] = [arguments for name, *arguments in messages if name == "events"]
    assert [each.client for each in refusals[0]] == [2]
