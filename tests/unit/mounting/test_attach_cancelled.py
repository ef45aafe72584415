"""A mount that is cancelled before it is live ends soon, quietly, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk import kernel
from aiovblk.kernel import AttachConfig
from aiovblk.mounting.handover import takeover
from aiovblk.mounting.handover.endpoint import HandoverGeometry, HandoverResult
from aiovblk.storage import MemoryDevice

from ...support.polling import until

FOREVER = 3600.0
READ = struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 4096)


class FakeAttachment:
    """An attachment of which one step hangs until it is closed."""

    index = 7
    path = "/dev/nbd7"

    def __init__(self, config: AttachConfig, hang: str) -> None:
        self.calls: list[str] = []
        self.ended: Future[int] = Future()
        self.kernel = socket.socket(fileno=os.dup(config.sockets[0]))
        self._hang = hang
        self.closed = threading.Event()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def step(*_: object) -> bool:
            self.calls.append(name)
            if name == self._hang:
                assert self.closed.wait(60)
            return True

        return step

    def disconnect(self) -> None:
        self.calls.append("disconnect")
        self.kernel.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 2, 0, 0))

    def disconnect_kernel(self) -> None:
        self.calls.append("finish")
        if not self.ended.done():
            self.ended.set_result(0)

    def close(self) -> None:
        self.calls.append("close")
        self.kernel.close()
        self.closed.set()


class Kernel:
    """Attaches when it may, and records the attachments."""

    def __init__(self) -> None:
        self.hang = ""
        self.attachments: list[FakeAttachment] = []
        self.may_attach = threading.Event()
        self.may_attach.set()
        self.started = threading.Event()
        self.wanted: list[bool] = []

    def attach(
        self,
        path: str | None,
        config: AttachConfig,
        *,
        by_netlink: bool | None,
        should_continue: Callable[[], bool],
    ) -> FakeAttachment:
        self.started.set()
        assert self.may_attach.wait(60)
        self.wanted.append(should_continue())
        self.attachments.append(FakeAttachment(config, self.hang))
        return self.attachments[-1]


class Hanging(MemoryDevice):
    """Never finishes a read."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.reading = asyncio.Event()
        self.calls: list[str] = []

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        self.reading.set()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def flush(self) -> None:
        self.calls.append("flush")

    async def unmount(self) -> None:
        self.calls.append("unmount")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()
    monkeypatch.setattr(kernel, "attach", made.attach)
    monkeypatch.setattr(
        kernel.partitions,
        "wait_for_partitions",
        lambda attachment, seconds: attachment.wait_for_partitions(),
    )
    yield made
    made.may_attach.set()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A cancellation is no error, and is not logged as one."""
    caplog.set_level(logging.WARNING)
    yield
    assert [record.getMessage() for record in caplog.records] == []


async def happens(event: threading.Event) -> None:
    await asyncio.to_thread(event.wait, 60)


async def becomes(condition: Callable[[], bool]) -> None:
    """Wait for what a thread does."""
    await until(condition, interval=0.01)


@asynccontextmanager
async def mounting(device: Any, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(aiovblk.mount(device, **options))
    yield task
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_the_kernel_attaches_detaches_what_comes_too_late(
    machine: Kernel,
) -> None:
    machine.may_attach.clear()
    device = Hanging()
    async with mounting(device, unmount_timeout=0.05):
        await happens(machine.started)
    # It had a device attached after all, with the sockets it was given: they were not closed.
    machine.may_attach.set()
    await becomes(lambda: bool(machine.attachments) and machine.attachments[0].closed.is_set())
    assert machine.wanted == [False]
    await becomes(lambda: "wait_until_free" in machine.attachments[0].calls)
    assert machine.attachments[0].calls == ["finish", "close", "wait_until_free"]


async def test_cancelled_device_that_is_attached_in_time_is_unmounted_in_order(
    machine: Kernel,
) -> None:
    machine.may_attach.clear()
    device = Hanging()
    async with mounting(device, unmount_timeout=FOREVER) as task:
        await happens(machine.started)
        task.cancel()
        await asyncio.sleep(0)
        machine.may_attach.set()
    assert machine.attachments[0].calls[-1] == "wait_until_free"
    assert "sync" in machine.attachments[0].calls
    assert device.calls == ["flush", "unmount"]


@pytest.mark.parametrize("options", [{}, {"partitions": True}])
async def test_cancelled_while_the_first_read_hangs_unmounts_after_the_timeout(
    machine: Kernel, options: dict[str, bool]
) -> None:
    machine.hang = "wait_for_partitions" if options else "wait_until_live"
    device = Hanging()
    async with mounting(device, unmount_timeout=0.1, **options):
        await becomes(
            lambda: bool(machine.attachments) and machine.hang in machine.attachments[0].calls
        )
        machine.attachments[0].kernel.sendall(READ)
        await device.reading.wait()
        # Nor does write-back end before that, which needs the node.
        machine.attachments[0]._hang = "sync"
    calls = machine.attachments[0].calls
    assert calls.index("sync") < calls.index("finish") < calls.index("close")
    assert device.calls == ["flush", "unmount"]


async def test_cancelled_while_a_handover_is_requested_leaves_the_device_to_its_server(
    machine: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "nbd7.socket"
    monkeypatch.setattr(kernel, "find_by_identity", lambda *_: 7)
    monkeypatch.setattr(kernel.locks, "socket_path", lambda index: path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        async with mounting(Hanging(), identity="v", replace=True, unmount_timeout=FOREVER):
            sock, _ = await asyncio.to_thread(listening.accept)
            assert b'"v"' in await asyncio.to_thread(sock.recv, 4096)
        with sock:
            assert sock.recv(4096) == b""  # the successor no longer waits
    assert not machine.attachments


async def test_device_that_is_handed_over_too_late_waits_for_another_server(
    machine: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = threading.Event()
    ours, theirs = socket.socketpair()
    lock = os.open(os.devnull, os.O_RDONLY)

    def ask(path: Path, wanted: object, seconds: float, sock: socket.socket) -> Any:
        with sock:
            machine.started.set()
            assert given.wait(60)
        return HandoverResult(lock, [(ours, b"")], HandoverGeometry(1 << 20, 4096, read_only=False))

    monkeypatch.setattr(kernel, "find_by_identity", lambda *_: 7)
    monkeypatch.setattr(takeover, "request_handover", ask)
    async with mounting(Hanging(), identity="v", replace=True, unmount_timeout=FOREVER) as task:
        await happens(machine.started)
        task.cancel()
        await asyncio.sleep(0)
        given.set()
    with theirs:
        assert await asyncio.to_thread(theirs.recv, 1) == b""
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(lock)


async def test_factory_that_refuses_to_end_is_left_to_itself() -> None:
    started, end = asyncio.Event(), asyncio.Event()

    async def make() -> MemoryDevice:
        started.set()
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                continue
        return MemoryDevice(4096)

    async with mounting(make, replace=True, identity="v", unmount_timeout=0.05):
        await started.wait()
    end.set()
    await asyncio.sleep(0)
