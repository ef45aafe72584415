"""Concurrency of handlers: how many run, in which order, in which context."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from aiovblk import BlockDevice
from aiovblk.dispatch import MAX_CONCURRENCY
from aiovblk.protocol import Command

from ...support.dispatch_client import PuppetDevice, served

READ, WRITE = Command.READ, Command.WRITE


async def test_by_default_128_handlers_run_at_once() -> None:
    assert MAX_CONCURRENCY == 128
    device = PuppetDevice()
    async with served(device) as server:
        for _ in range(130):
            server.client.send(READ, 0, 512)
        calls = [await device.calls.get() for _ in range(128)]
        await server.accepted()
        assert device.calls.empty()
        for call in calls:
            call.succeed()
        calls = [await device.calls.get() for _ in range(2)]
        for call in calls:
            call.succeed()
        await server.client.replies(130)


async def test_as_many_handlers_run_as_were_asked_for_and_the_next_one_waits() -> None:
    device = PuppetDevice()
    async with served(device, concurrency=3) as server:
        for number in range(5):
            server.client.send(READ, number * 512, 512)
        running = [await device.calls.get() for _ in range(3)]
        await server.accepted()
        assert device.calls.empty()
        for number in (3, 4):
            running.pop(1).succeed()
            await server.client.reply()
            running.append(await device.calls.get())
            assert running[-1].offset == number * 512
            assert device.calls.empty()
        for call in running:
            call.succeed()
        await server.client.replies(3)


async def test_concurrency_1_serves_in_the_order_of_arrival() -> None:
    device = PuppetDevice()
    async with served(device, concurrency=1) as server:
        for number in range(20):
            server.client.send(READ, number * 512, 512)
        for number in range(20):
            call = await device.calls.get()
            assert (call.offset, device.calls.empty()) == (number * 512, True)
            call.succeed()
        await server.client.replies(20)


class CoarseDevice(BlockDevice):
    """A device that stores units of eight blocks: each write is a read-modify-write cycle."""

    block_size, blocks = 512, 8

    def __init__(self) -> None:
        self.piece = bytes(4096)

    async def read(self, offset: int, length: int) -> bytes:
        return self.piece[offset : offset + length]

    async def write(self, offset: int, data: memoryview) -> None:
        piece = bytearray(self.piece)
        await asyncio.sleep(0)
        piece[offset : offset + len(data)] = data
        await asyncio.sleep(0)
        self.piece = bytes(piece)


@pytest.mark.parametrize(("concurrency", "correct"), [(1, True), (8, False)])
async def test_read_modify_write_is_safe_with_concurrency_1_only(
    concurrency: int, correct: bool
) -> None:
    async with served(CoarseDevice(), concurrency=concurrency) as server:
        blocks = [bytes([number]) * 512 for number in range(1, 9)]
        asked = [
            server.client.request(WRITE, number * 512, data=block)[1]
            for number, block in enumerate(blocks)
        ]
        server.client.writer.write(b"".join(asked))
        await server.client.replies(8)
        assert (await server.client.read(0, 4096) == b"".join(blocks)) is correct


async def test_requests_are_taken_off_the_socket_while_all_handlers_wait() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        for number in range(1000):
            server.client.send(WRITE, number * 4096, data=bytes([number % 251]) * 4096)
        await server.accepted()  # 4 MB, far more than the socket holds
        assert server.stats.in_flight == 1000
        for number in range(1000):
            call = await device.calls.get()
            assert call.offset == number * 4096
            assert call.data is not None
            assert bytes(call.data) == bytes([number % 251]) * 4096
            call.succeed()
        await server.client.replies(1000)


async def test_replies_wait_for_a_client_that_does_not_read() -> None:
    class Device(BlockDevice):
        blocks = 256

        async def read(self, offset: int, length: int) -> bytes:
            return bytes([offset // 4096]) * length

    async with served(Device()) as server:
        asked = {server.client.send(READ, number * 4096, 4096): number for number in range(256)}
        server.client.transport.pause_reading()
        await server.accepted()
        server.client.transport.resume_reading()
        replies = await server.client.replies(256)
        assert all(replies[cookie].data[0] == number for cookie, number in asked.items())


async def test_handlers_that_never_wait_do_not_nest() -> None:
    class Device(BlockDevice):
        block_size, blocks = 512, 8
        held: asyncio.Future[None] | None = None

        async def read(self, offset: int, length: int) -> bytes:
            if offset:
                self.held = asyncio.get_running_loop().create_future()
                await self.held
            return bytes(length)

    device = Device()
    async with served(device, concurrency=1) as server:
        server.client.send(READ, 512, 512)
        for _ in range(5000):  # more than the interpreter would nest
            server.client.send(READ, 0, 512)
        await server.accepted()
        assert device.held is not None
        device.held.set_result(None)
        await server.client.replies(5001)


async def test_each_handler_runs_in_a_task_of_its_own() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        for _ in range(3):
            server.client.send(READ, 0, 512)
        calls = [await device.calls.get() for _ in range(3)]
        tasks = {call.task for call in calls}
        assert len(tasks) == 3
        assert not tasks & {None, server.serving, asyncio.current_task()}
        for call in calls:
            call.succeed()
        await server.client.replies(3)


async def test_timeout_within_a_handler_ends_only_what_it_surrounds() -> None:
    class Device(BlockDevice):
        block_size, blocks = 512, 8

        async def read(self, offset: int, length: int) -> bytes:
            try:
                async with asyncio.timeout(0 if offset else 0.001):
                    await asyncio.get_running_loop().create_future()
            except TimeoutError:
                return b"\x22" * length
            raise AssertionError("the wait has no end")

    async with served(Device()) as server:
        for offset in (0, 512, 0, 512):
            assert await server.client.read(offset, 512) == b"\x22" * 512


async def test_task_group_within_a_handler_runs_its_tasks() -> None:
    class Device(BlockDevice):
        block_size, blocks = 512, 8

        async def read(self, offset: int, length: int) -> bytes:
            async with asyncio.TaskGroup() as group:
                halves = [group.create_task(asyncio.sleep(0, b"\x33" * 256)) for _ in range(2)]
            return b"".join(half.result() for half in halves)

    async with served(Device()) as server:
        assert await server.client.read(0, 512) == b"\x33" * 512


async def test_context_of_a_handler_is_the_mounts_and_does_not_leak() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    class Device(BlockDevice):
        blocks = 1

        async def read(self, offset: int, length: int) -> bytes:
            seen.append(variable.get())
            variable.set("by a handler")
            await asyncio.sleep(0)
            seen.append(variable.get())
            return bytes(length)

    variable.set("by the owner")
    async with served(Device()) as server:
        variable.set("later")
        asked = [server.client.request(READ, 0, 4096)[1] for _ in range(2)]
        server.client.writer.write(b"".join(asked))
        await server.client.replies(2)
        await server.client.read(0, 4096)
    assert sorted(seen) == ["by a handler"] * 3 + ["by the owner"] * 3
    assert variable.get() == "later"


async def test_drained_is_done_when_the_last_request_is_answered() -> None:
    device = PuppetDevice()
    async with served(device, concurrency=1) as server:
        assert server.dispatcher.drained().done()
        for _ in range(2):
            server.client.send(READ, 0, 512)
        await server.accepted()
        waits = [server.dispatcher.drained(), server.dispatcher.drained()]
        (await device.calls.get()).succeed()
        await server.client.reply()
        assert not any(wait.done() for wait in waits)
        (await device.calls.get()).succeed()
        await asyncio.gather(*waits)
        await server.client.reply()


async def test_cancelled_waiter_of_drained_does_no_harm() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(READ, 0, 512)
        call = await device.calls.get()
        drained, given_up = server.dispatcher.drained(), server.dispatcher.drained()
        given_up.cancel()
        call.succeed()
        await server.client.reply()
        await drained
        server.client.send(READ, 0, 512)
        (await device.calls.get()).succeed()
        await server.client.reply()


async def test_close_sends_what_is_queued_first() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(READ, 0, 512)
        call = await device.calls.get()
        call.succeed(b"\x44" * 512)
        await server.dispatcher.drained()
        assert await server.dispatcher.close() is None
        assert (await server.client.reply()).data == b"\x44" * 512


async def test_the_start_of_the_oldest_handler_is_known() -> None:
    device = PuppetDevice()
    loop = asyncio.get_running_loop()
    async with served(device) as server:
        dispatcher = server.dispatcher
        assert dispatcher.oldest_start is None
        before = loop.time()
        server.client.send(READ, 0, 512)
        oldest = await device.calls.get()
        since = dispatcher.oldest_start
        assert since is not None
        assert before <= since <= loop.time()
        server.client.send(READ, 0, 512)
        youngest = await device.calls.get()
        assert dispatcher.oldest_start == since
        oldest.succeed()
        await server.client.reply()
        assert dispatcher.oldest_start >= since
        youngest.succeed()
        await server.client.reply()
        assert dispatcher.oldest_start is None
        assert dispatcher.last_reply >= since
