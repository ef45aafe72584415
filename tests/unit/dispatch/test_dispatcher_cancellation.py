"""Cancelled handlers, retried handlers, and aborted connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from aiovblk.dispatch import ConcurrencyLimiter
from aiovblk.protocol import Command

from ...support.dispatch_client import PuppetDevice, Served, served
from ...support.polling import until

READ, WRITE = Command.READ, Command.WRITE


def cancel_handlers(server: Served) -> None:
    """Cancel tasks as the end of an event loop does; the owner keeps its own from it."""
    for task in asyncio.all_tasks() - {server.owner, server.serving}:
        task.cancel()


def soon(callback: Callable[..., None], *args: Any) -> None:
    asyncio.get_running_loop().call_soon(callback, *args)


async def test_cancelled_handler_is_run_again_and_answers() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(WRITE, 1024, data=b"\x55" * 512)
        first = await device.calls.get()
        cancel_handlers(server)
        second = await device.calls.get()
        assert first.result.cancelled()
        assert (second.offset, bytes(second.data or b"")) == (1024, b"\x55" * 512)
        second.succeed()
        assert (await server.client.reply()).error == 0


async def test_handler_cancelled_again_and_again_answers_once() -> None:
    device = PuppetDevice()
    async with served(device, concurrency=1, handler_timeout=15) as server:
        cookie = server.client.send(READ, 0, 512)
        for _ in range(5):
            call = await device.calls.get()
            call.cancel()
            call.cancel()
        (await device.calls.get()).succeed(b"\x66" * 512)
        assert await server.client.reply() == (cookie, 0, b"\x66" * 512)
        assert device.calls.empty()


async def test_handler_that_was_run_again_may_not_raise_cancelled_error_either() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(READ, 0, 512)
        call = await device.calls.get()
        call.cancel()
        (await device.calls.get()).fail(asyncio.CancelledError())
        assert (await server.client.reply()).error == errno.EIO
        assert device.calls.empty()


async def test_timeout_in_a_handler_that_was_run_again_still_works() -> None:
    class Device(PuppetDevice):
        async def read(self, offset: int, length: int) -> bytes:
            try:
                async with asyncio.timeout(0.01):
                    return await super().read(offset, length)
            except TimeoutError:
                return b"\x77" * length

    device = Device()
    async with served(device) as server:
        server.client.send(READ, 0, 512)
        call = await device.calls.get()
        call.cancel()
        assert (await server.client.reply()).data == b"\x77" * 512


async def test_cancelled_before_its_first_step_a_handler_still_answers() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.on_disconnect = partial(soon, cancel_handlers, server)
        cookie, write = server.client.request(WRITE, 512, data=b"\x88" * 512)
        _, disc = server.client.request(Command.DISC)
        await server.arrive(write + disc)
        await device.calls.get()
        call = await device.calls.get()
        assert bytes(call.data or b"") == b"\x88" * 512
        call.succeed()
        assert await server.client.reply() == (cookie, 0, b"")
        assert device.calls.empty()


async def test_waiting_requests_are_served_after_a_cancelled_handler() -> None:
    device = PuppetDevice()
    async with served(device, concurrency=1) as server:
        server.on_disconnect = partial(soon, cancel_handlers, server)
        messages = [server.client.request(READ, number * 512, 512)[1] for number in range(3)]
        await server.arrive(b"".join([*messages, server.client.request(Command.DISC)[1]]))
        await device.calls.get()
        for number in range(3):
            call = await device.calls.get()
            assert (call.offset, device.calls.empty()) == (number * 512, True)
            call.succeed()
        await server.client.replies(3)


async def test_abort_sends_no_reply_and_cancels_handlers() -> None:
    device = PuppetDevice()
    async with served(device, concurrency=2) as server:
        for _ in range(5):
            server.client.send(READ, 0, 512)
        running = [await device.calls.get() for _ in range(2)]
        await server.accepted()
        server.dispatcher.abort()
        await server.dispatcher.drained()
        assert all(call.result.cancelled() for call in running)
        assert device.calls.empty()
        assert await server.client.reader.read() == b""
        assert (server.stats.errors, server.stats.in_flight) == (5, 0)


@pytest.mark.parametrize("in_a_batch", [True, False])
async def test_abort_before_the_first_step_of_handlers_drains(in_a_batch: bool) -> None:
    device = PuppetDevice()
    async with served(device) as server:
        abort = server.dispatcher.abort
        server.on_disconnect = abort if in_a_batch else partial(soon, abort)
        server.client.writer.write(
            server.client.request(READ, 0, 512)[1] + server.client.request(Command.DISC)[1]
        )
        await server.serving
        await server.dispatcher.drained()
        assert server.stats.in_flight == 0
        assert await server.client.reader.read() == b""


async def test_abort_before_the_first_step_of_a_handler_gives_its_turn_to_others() -> None:
    device, limiter = PuppetDevice(), ConcurrencyLimiter(1)
    async with served(device, limiter=limiter) as one, served(device, limiter=limiter) as other:
        one.client.send(READ, 0, 512)
        running = await device.calls.get()
        one.client.send(READ, 512, 512)
        await one.accepted()
        cookie = other.client.send(READ, 1024, 512)
        await other.accepted()
        # Called after the handler's own next step, in which the next is started; before 3.12 that
        # has not begun then.
        running.result.add_done_callback(lambda _: one.dispatcher.abort())
        running.succeed(bytes(512))
        if sys.version_info >= (3, 12):
            assert (await device.calls.get()).offset == 512
        call = await device.calls.get()
        assert call.offset == 1024
        call.succeed(bytes(512))
        assert await other.client.reply() == (cookie, 0, bytes(512))
        await one.client.reader.read()
        assert limiter.running == 0


async def test_handler_done_after_abort_sends_nothing() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(READ, 0, 512)
        call = await device.calls.get()
        call.succeed(b"\x99" * 512)
        server.dispatcher.abort()
        await server.dispatcher.drained()
        assert await server.client.reader.read() == b""


async def test_requests_in_flight_when_the_client_goes_are_finished() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(WRITE, 0, data=bytes(512))
        call = await device.calls.get()
        server.client.writer.close()
        await server.serving
        assert server.stats.in_flight == 1
        call.succeed()
        await server.dispatcher.drained()
        assert server.stats.writes == 1


async def test_client_that_ends_its_requests_still_gets_its_replies() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(READ, 0, 512)
        call = await device.calls.get()
        server.client.writer.write_eof()
        await server.serving
        await asyncio.sleep(0)
        call.succeed(b"\xbb" * 512)
        assert (await server.client.reply()).data == b"\xbb" * 512


async def test_connection_that_breaks_with_bytes_unread_ends_run_with_its_error() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.transport.pause_reading()
        for _ in range(2):
            server.client.send(READ, 0, 512)
        first, second = [await device.calls.get() for _ in range(2)]
        first.succeed()
        drained = server.dispatcher.drained()
        second.succeed()
        await drained
        server.client.transport.abort()
        with pytest.raises(ConnectionResetError):
            await server.serving


async def test_requests_that_are_given_up_fail_and_the_others_live_on() -> None:
    device = PuppetDevice()
    loop = asyncio.get_running_loop()
    async with served(device) as server:
        old = server.client.send(READ, 0, 512)
        hanging = await device.calls.get()
        since = loop.time()
        await until(lambda: loop.time() > since)  # uvloop's clock counts milliseconds
        young = server.client.send(READ, 512, 512)
        call = await device.calls.get()
        server.dispatcher.fail_running(since)
        assert await server.client.reply() == (old, errno.EIO, b"")
        assert hanging.result.cancelled()
        call.succeed(b"\x77" * 512)
        assert await server.client.reply() == (young, 0, b"\x77" * 512)


async def test_requests_that_wait_for_their_turn_can_be_given_up_too() -> None:
    device = PuppetDevice()
    async with served(device, concurrency=1) as server:
        cookies = {server.client.send(READ, 0, 512) for _ in range(3)}
        await server.accepted()
        await device.calls.get()
        server.dispatcher.fail_running()
        replies = [await server.client.reply() for _ in cookies]
        assert {(reply.cookie, reply.error) for reply in replies} == {
            (cookie, errno.EIO) for cookie in cookies
        }
        assert device.calls.empty()
        server.client.send(READ, 0, 512)
        (await device.calls.get()).succeed(bytes(512))
        assert (await server.client.reply()).error == 0


async def test_handler_that_ignores_being_given_up_is_waited_for() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    class Stubborn(PuppetDevice):
        async def read(self, offset: int, length: int) -> bytes:
            begun.set()
            while not ended.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await ended.wait()
            return bytes(length)

    async with served(Stubborn()) as server:
        server.client.send(READ, 0, 512)
        await begun.wait()
        server.dispatcher.fail_running()
        await asyncio.sleep(0)
        ended.set()
        assert (await server.client.reply()).error == 0
