"""HandlerScheduler: the tasks that handlers run in."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

import pytest

from aiovblk import BlockDevice
from aiovblk.dispatch import ConcurrencyLimiter
from aiovblk.protocol import Command
from tests.support.dispatch_client import Served, served

READ = Command.READ

variable: ContextVar[object] = ContextVar("variable", default="unset")


class Recorder(BlockDevice):
    """Records the task that each block was read in, and runs an action there."""

    block_size, blocks = 512, 16

    def __init__(self, what: dict[int, Callable[[], object]] | None = None) -> None:
        self.what = what or {}
        self.tasks: list[tuple[int, asyncio.Task[None] | None]] = []
        self.seen: list[object] = []
        self.waiting = asyncio.Semaphore(0)
        self.release = asyncio.Event()

    async def read(self, offset: int, length: int) -> bytes:
        block = offset // 512
        self.tasks.append((block, asyncio.current_task()))
        self.seen.append(variable.get())
        if (what := self.what.get(block)) is not None:
            what()
        if block >= 8:
            self.waiting.release()
            await self.release.wait()
        return bytes([block]) * length


async def read_together(server: Served, *blocks: int) -> None:
    """Send reads that arrive together."""
    messages = [server.client.request(READ, block * 512, 512)[1] for block in blocks]
    await server.arrive(b"".join(messages))


async def test_handlers_that_never_wait_share_a_task_and_one_that_waits_has_its_own() -> None:
    device = Recorder()
    async with served(device) as server:
        await read_together(server, 0, 1, 8, 2, 9, 3)
        await server.client.replies(4)
        device.release.set()
        await server.client.replies(2)
    assert [block for block, _ in device.tasks] == [0, 1, 8, 2, 9, 3]
    tasks = [task for _, task in device.tasks]
    assert tasks[0] is tasks[1] is tasks[2]
    assert tasks[3] is tasks[4]
    assert len({tasks[0], tasks[3], tasks[5]}) == 3
    assert not {None, server.serving, server.owner} & set(tasks)


async def test_handler_that_has_waited_does_not_go_on_with_others() -> None:
    device = Recorder()
    async with served(device, concurrency=2) as server:
        await read_together(server, 8, 9, 0)
        for _ in range(2):
            await device.waiting.acquire()
        device.release.set()
        await server.client.replies(3)
    assert len({task for _, task in device.tasks}) == 3


class Incomparable:
    """A value that cannot be compared, as NumPy's arrays."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = None  # type: ignore[assignment]  # as it is where only __eq__ is defined


@pytest.mark.parametrize("value", ["by a handler", Incomparable()])
async def test_context_that_a_handler_changes_without_waiting_is_not_the_next_ones(
    value: object,
) -> None:
    device = Recorder({1: lambda: variable.set(value)})
    variable.set("by the owner" if isinstance(value, str) else Incomparable())
    theirs = variable.get()
    async with served(device) as server:
        await read_together(server, 0, 1, 2, 1, 3)
        await server.client.replies(5)
    assert len(device.seen) == 5
    assert all(seen is theirs for seen in device.seen)


async def test_context_that_was_put_back_is_no_reason_for_another_task() -> None:
    def set_and_reset() -> None:
        variable.reset(variable.set("for a while"))

    device = Recorder({0: set_and_reset})
    variable.set("by the owner")
    async with served(device) as server:
        await read_together(server, 0, 1)
        await server.client.replies(2)
    assert device.seen == ["by the owner"] * 2
    assert device.tasks[0][1] is device.tasks[1][1]


async def test_handler_that_cancels_its_task_and_returns_does_no_harm() -> None:
    def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    device = Recorder({0: cancel_itself})
    async with served(device) as server:
        await read_together(server, 0, 1, 8)
        await server.client.replies(2)
        device.release.set()
        assert (await server.client.reply()).error == 0


async def test_connections_that_share_a_turn_take_it_one_after_the_other() -> None:
    order: list[str] = []
    limiter = ConcurrencyLimiter(1)

    def device(name: str) -> Recorder:
        return Recorder({block: partial(order.append, f"{name} {block}") for block in (0, 1, 2, 8)})

    a, b = device("a"), device("b")
    async with served(a, limiter=limiter) as one, served(b, limiter=limiter) as other:
        await read_together(one, 8, 0, 1, 2)
        await read_together(other, 8, 0, 1)
        await a.waiting.acquire()
        a.release.set()
        await one.client.replies(2)
        b.release.set()
        await one.client.replies(2)
        await other.client.replies(3)
        assert limiter.running == 0
    assert order == ["a 8", "a 0", "b 8", "a 1", "b 0", "a 2", "b 1"]


async def test_slow_handlers_begin_together() -> None:
    device = Recorder()
    async with served(device) as server:
        await read_together(server, 8)
        await read_together(server, *range(9, 16))
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(device.tasks) == 8
        device.release.set()
        await server.client.replies(8)


_INTERRUPTED = """
import asyncio, socket
from aiovblk import BlockDevice
from aiovblk.dispatch import Dispatcher, Stats
from aiovblk.protocol import Command, Request, serialize_request

class Device(BlockDevice):
    block_size, blocks = 512, 8

    async def read(self, offset, length):
        if offset:
            raise KeyboardInterrupt
        return bytes(length)

ours, theirs = socket.socketpair()
loop = asyncio.new_event_loop()

async def serve():
    dispatcher = Dispatcher(Device(), Stats(), on_disconnect=lambda: None)
    await dispatcher.connect(ours)
    return dispatcher

dispatcher = loop.run_until_complete(serve())
offsets = 0, 512, 0, 0
requests = [Request(0, Command.READ, 0, offset, 512) for offset in offsets]
theirs.sendall(b"".join(map(serialize_request, requests)))
running = loop.create_task(dispatcher.run())
try:
    loop.run_until_complete(running)
except KeyboardInterrupt:
    print("interrupted")
loop.run_until_complete(dispatcher.drained())
print(dispatcher.stats.reads, dispatcher.stats.errors)
assert isinstance(running.exception() if running.done() else None, KeyboardInterrupt | None)
"""


def test_those_in_line_are_served_after_a_handler_was_interrupted() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["interrupted", "3", "1"], done.stderr
