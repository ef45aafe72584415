"""Memory quotas of clients: backpressure, fairness and refunds."""

from __future__ import annotations

import asyncio

import pytest

from aiovblk.dispatch import (
    ConcurrencyLimiter,
    ConnectionQuota,
    Dispatcher,
    MemoryBudget,
    Stats,
)
from aiovblk.dispatch.holes import MAX_SENT_EXTENTS
from aiovblk.dispatch.memory_budget import ALWAYS_ALLOWED, EXTENT_COST, REQUEST_COST, request_cost
from aiovblk.protocol import MAX_PAYLOAD, Command, Request, serialize_request
from aiovblk.storage import MemoryDevice
from aiovblk.stream import StreamProtocol

from ...support.dispatch_client import PuppetDevice, served
from ...support.simulated_loop import MemoryTransport, StillLoop


@pytest.mark.parametrize(
    ("command", "length", "payload"),
    [
        (Command.READ, 4096, 4096),
        (Command.WRITE, MAX_PAYLOAD, MAX_PAYLOAD),
        (Command.READ, 2**64 - 1, MAX_PAYLOAD),
        (Command.TRIM, 2**32 - 1, 0),
        (Command.WRITE_ZEROES, 2**64 - 1, 0),
        (Command.FLUSH, 0, 0),
        (0xFFFF, 2**32 - 1, 0),
    ],
)
def test_request_costs_its_payload_but_never_what_only_its_length_claims(
    command: int, length: int, payload: int
) -> None:
    assert request_cost(Request(0, command, 1, 0, length)) == REQUEST_COST + payload


def test_block_status_costs_what_its_extents_may_take_while_the_reply_is_made() -> None:
    def status(length: int) -> int:
        return request_cost(Request(0, Command.BLOCK_STATUS, 1, 0, length))

    assert status(512) == REQUEST_COST + 2 * EXTENT_COST
    assert status(2**64 - 1) == REQUEST_COST + MAX_SENT_EXTENTS * EXTENT_COST


def test_quota_has_nothing_left_at_its_own_limit() -> None:
    quota = ConnectionQuota(MemoryBudget(1000), 100)
    quota.charge(99)
    assert quota.available() == 1
    quota.charge(1)
    assert quota.available() == 0
    quota.refund(1)
    assert quota.available() == 1


def test_quota_has_nothing_left_where_the_budget_has_but_may_take_one_small_request() -> None:
    budget = MemoryBudget(100)
    greedy, modest = ConnectionQuota(budget, 10**9), ConnectionQuota(budget, 10**9)
    greedy.charge(500)
    assert not greedy.may_charge(1)
    assert modest.may_charge(ALWAYS_ALLOWED)
    assert not modest.may_charge(ALWAYS_ALLOWED + 1)
    modest.charge(1)
    assert not modest.may_charge(1)
    greedy.refund(500)
    assert modest.may_charge(10**8)  # one that passes the limit, as long as there is something left


async def reserving(quota: ConnectionQuota, count: int = 1) -> asyncio.Task[None]:
    task = asyncio.create_task(quota.reserve(count))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_reserving_is_done_at_once_where_there_is_room() -> None:
    quota = ConnectionQuota(MemoryBudget(100), 100)
    quota.charge(99)
    await quota.reserve(7)
    assert quota.reserved == 7
    assert quota.available() == -6


async def test_reserving_waits_for_what_the_quota_itself_gives_back() -> None:
    quota = ConnectionQuota(MemoryBudget(1000), 100)
    quota.charge(150)
    task = await reserving(quota)
    quota.refund(50)
    await asyncio.sleep(0)
    assert not task.done()
    quota.refund(1)
    await task


@pytest.mark.parametrize("closes", [False, True])
async def test_reserving_waits_for_what_another_quota_gives_back(closes: bool) -> None:
    budget = MemoryBudget(100)
    greedy, modest = ConnectionQuota(budget, 1000), ConnectionQuota(budget, 1000)
    modest.charge(10)
    greedy.charge(500)
    task = await reserving(modest, 20)
    assert budget.is_low()
    if closes:
        greedy.close()
    else:
        greedy.refund(500)
    await task
    assert budget.used == 30
    assert not budget.is_low()


async def test_waiting_connections_get_memory_in_fifo_order_before_all_others() -> None:
    budget = MemoryBudget(100)
    quotas = [ConnectionQuota(budget, 1000) for _ in range(3)]
    greedy = ConnectionQuota(budget, 1000)
    greedy.charge(200)
    for quota in quotas:
        quota.charge(1)
    tasks = [await reserving(quota, 200) for quota in quotas]
    for task in tasks:
        assert greedy.available() <= 0
        budget.limit = budget.used + 1
        greedy.refund(0)
        await task  # though it is the first that waits, it is the only one that is given any
        assert not greedy.may_charge(1)
    assert [quota.reserved for quota in quotas] == [200] * 3


async def test_quota_that_waits_for_the_budget_still_gets_its_one_small_request() -> None:
    budget = MemoryBudget(100)
    greedy, modest = ConnectionQuota(budget, 1000), ConnectionQuota(budget, 1000)
    greedy.charge(500)
    modest.charge(10)
    task = await reserving(modest, ALWAYS_ALLOWED)
    modest.refund(10)
    await task


@pytest.mark.parametrize("granted", [False, True])
async def test_reserving_that_is_cancelled_reserves_nothing_and_can_be_repeated(
    granted: bool,
) -> None:
    budget = MemoryBudget(1000)
    quota = ConnectionQuota(budget, 100)
    quota.charge(100)
    task = await reserving(quota, 50)
    if granted:
        quota.refund(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert budget.used == (99 if granted else 100)
    assert quota.reserved == 0
    if not granted:
        task = await reserving(quota, 50)
        quota.refund(1)
        await task
    else:
        await quota.reserve(50)
    assert budget.used == 149


def test_reservation_of_a_smaller_request_does_not_do_for_a_larger_one() -> None:
    budget = MemoryBudget(1000)
    quota, other = ConnectionQuota(budget, 500), ConnectionQuota(budget, 1000)
    assert quota.reserve_now(100)
    assert quota.reserve_now(300)
    assert budget.used == 300
    other.charge(1000)
    assert not quota.reserve_now(ALWAYS_ALLOWED + 1)
    assert budget.used == 1000
    assert quota.reserved == 0


async def test_quota_closed_while_it_waits_blocks_no_other() -> None:
    budget = MemoryBudget(100)
    greedy, leaving, other = (ConnectionQuota(budget, 1000) for _ in range(3))
    greedy.charge(100)
    for quota in (leaving, other):
        quota.charge(1)
    waits = await reserving(leaving, 10**6)
    stays = await reserving(other, 10**6)
    waits.cancel()
    leaving.close()
    greedy.close()
    await stays
    assert budget.used == 10**6 + 1


def test_quota_that_is_closed_has_nothing_left_to_give_back() -> None:
    budget = MemoryBudget(100)
    quota, other = ConnectionQuota(budget, 100), ConnectionQuota(budget, 100)
    other.charge(30)
    quota.charge(50)
    quota.close()
    assert budget.used == 30
    quota.refund(50)  # the last replies leave, or are lost, after the end
    assert budget.used == 30


@pytest.mark.parametrize("reads", [False, True])
def test_replies_that_leave_after_the_end_are_not_given_back_twice(reads: bool) -> None:
    budget = MemoryBudget(1 << 20)
    with StillLoop() as loop:
        stream = StreamProtocol()
        transport = MemoryTransport(stream, stalled=True)
        quota = ConnectionQuota(budget, 1 << 20)
        dispatcher = Dispatcher(
            MemoryDevice(1 << 20), Stats(), quota=quota, on_disconnect=lambda: None
        )
        dispatcher.attach_stream(stream)
        serving = loop.start(dispatcher.run())
        for cookie in range(3):
            request = Request(0, Command.READ, cookie, 0, 128 * 1024)
            assert not transport.deliver(serialize_request(request))
            loop.run_due()
        assert stream.write_paused
        assert budget.used >= 3 * 128 * 1024
        serving.cancel()
        loop.run_due()
        quota.close()
        assert budget.used == 0
        if reads:
            transport.read()
        transport.lose()
        assert budget.used == 0


def test_client_that_does_not_read_is_taken_no_more_requests_from() -> None:
    """Let the client read until all requests are answered."""
    limit = 256 * 1024
    with StillLoop() as loop:
        stream = StreamProtocol()
        transport = MemoryTransport(stream, stalled=True)
        stats = Stats()
        dispatcher = Dispatcher(
            MemoryDevice(1 << 20),
            stats,
            quota=ConnectionQuota(MemoryBudget(1 << 30), limit),
            on_disconnect=lambda: None,
        )
        dispatcher.attach_stream(stream)
        loop.start(dispatcher.run())
        message = serialize_request(Request(0, Command.READ, 1, 0, 64 * 1024))
        transport.deliver(message * 100)
        loop.run_due()
        assert limit < len(transport.sent) < 2 * limit
        while stream.write_paused:
            transport.read()
            loop.run_due()
        assert stats.reads == 100
        transport.lose()
        loop.run_due()


async def test_one_request_is_in_flight_although_it_is_larger_than_the_budget() -> None:
    device = PuppetDevice()
    quota = ConnectionQuota(MemoryBudget(1), 1)
    async with served(device, quota=quota) as server:
        for _ in range(2):
            server.client.send(Command.READ, 0, 1 << 20)
        first = await device.calls.get()
        await asyncio.sleep(0)
        assert device.calls.empty()
        first.succeed()
        await server.client.reply()
        (await device.calls.get()).succeed()
        await server.client.reply()


async def test_write_that_arrives_in_parts_is_charged_once() -> None:
    device, budget = PuppetDevice(), MemoryBudget(1 << 30)
    quota = ConnectionQuota(budget, 1 << 30)
    length = 2 << 20
    async with served(device, quota=quota) as server:
        _, message = server.client.request(Command.WRITE, 0, data=bytes(length))
        await server.arrive(message[:100])
        assert length <= budget.used <= length + REQUEST_COST
        server.client.writer.write(message[100:])
        call = await device.calls.get()
        await asyncio.sleep(0)  # the task waits now
        assert (budget.used, quota.reserved) == (REQUEST_COST + length, 0)
        call.succeed()
        await server.client.reply()
        assert budget.used == 0


async def test_write_that_arrived_in_parts_leaves_nothing_reserved_for_the_next_one() -> None:
    budget = MemoryBudget(1 << 30)
    quota = ConnectionQuota(budget, 1 << 30)
    async with served(MemoryDevice(32 << 20), quota=quota) as server:
        for length in (2 << 20, 20 << 20, 3 << 20):
            _, message = server.client.request(Command.WRITE, 0, data=bytes(length))
            await server.arrive(message[:-1])
            assert length <= budget.used <= length + REQUEST_COST
            server.client.writer.write(message[-1:])
            await server.client.reply()
            assert (budget.used, quota.reserved) == (0, 0)


async def test_memory_that_a_read_has_waited_for_is_charged_once() -> None:
    device, budget = PuppetDevice(), MemoryBudget(1 << 30)
    quota, length = ConnectionQuota(budget, 1 << 20), 512 * 1024
    async with served(device, quota=quota) as server:
        for _ in range(4):
            server.client.send(Command.READ, 0, length)
        for _ in range(4):
            (await device.calls.get()).succeed()
            await server.client.reply()
        assert (budget.used, quota.reserved) == (0, 0)


class Busy:
    """Holds a limiter."""

    def start_ready(self) -> None:
        raise AssertionError("it does not wait")


def test_client_that_ends_while_memory_is_short_is_answered_all_it_has_sent() -> None:
    budget, limiter = MemoryBudget(1000), ConcurrencyLimiter(1)
    ConnectionQuota(budget, 1000).charge(1000)
    with StillLoop() as loop:
        stream = StreamProtocol()
        transport = MemoryTransport(stream)
        stats = Stats()
        dispatcher = Dispatcher(
            MemoryDevice(1 << 20),
            stats,
            quota=ConnectionQuota(budget, 1000),
            limiter=limiter,
            on_disconnect=lambda: None,
        )
        dispatcher.attach_stream(stream)
        serving = loop.start(dispatcher.run())
        refused = serialize_request(Request(0, Command.READ, 1, 0, 0))
        disconnect = serialize_request(Request(0, Command.DISC, 2, 0, 0))
        read = serialize_request(Request(0, Command.READ, 3, 0, 4096))
        assert limiter.acquire(Busy())
        transport.deliver((refused + disconnect) * 4 + read)
        transport.end()
        loop.run_due()
        limiter.release()
        loop.run_due()
        assert (stats.errors, stats.reads) == (4, 1)
        assert serving.done()
        assert serving.exception() is None
        transport.lose()
