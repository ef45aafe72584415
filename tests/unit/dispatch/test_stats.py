"""Counters and latencies of requests."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovblk import BlockDevice
from aiovblk.dispatch import LatencyHistogram, Stats, pacing, reply_sender, scheduler
from aiovblk.latency import upper_bound
from aiovblk.protocol import Command
from aiovblk.storage import MemoryDevice
from aiovblk.stream import slices

from ...support.dispatch_client import PuppetDevice, served

MILLISECOND = 1_000_000

times = st.integers(0, 2**45)


def of(*nanoseconds: int) -> LatencyHistogram:
    latency = LatencyHistogram()
    for each in nanoseconds:
        latency.add(each)
    return latency


@given(times)
def test_bucket_holds_what_is_counted_in_it(nanoseconds: int) -> None:
    bucket = len(of(nanoseconds).buckets) - 1
    assert nanoseconds < upper_bound(bucket)
    assert bucket == 0 or upper_bound(bucket - 1) <= nanoseconds


@given(st.integers(8, 2**45))
def test_quantile_is_a_quarter_too_much_at_most(nanoseconds: int) -> None:
    median = of(nanoseconds).p50 * 1e9
    assert nanoseconds < median * 1.000001
    assert median <= nanoseconds * 1.250001


@given(st.lists(times), st.lists(times))
def test_sum_is_what_would_have_been_counted_together(some: list[int], others: list[int]) -> None:
    assert of(*some) + of(*others) == of(*some, *others)


@given(st.lists(times), st.integers(0, 45))
def test_count_below_a_power_of_two_is_exact(several: list[int], power: int) -> None:
    assert of(*several).count_below(1 << power) == sum(each < 1 << power for each in several)


def test_quantiles_separate_slow_requests_from_the_rest() -> None:
    latency = of(*[MILLISECOND] * 990, *[50 * MILLISECOND] * 9, 2000 * MILLISECOND)
    assert latency.count == 1000
    assert 0.001 <= latency.p50 == latency.p99 <= 0.00125
    assert 0.05 <= latency.p999 <= 0.0625
    assert 2 <= latency.quantile(1) <= 2.5
    assert latency.mean == pytest.approx((990 + 450 + 2000) / 1e6)


def test_nothing_took_no_time() -> None:
    latency = LatencyHistogram()
    assert (latency.count, latency.mean, latency.p50, latency.p999) == (0, 0, 0, 0)


def test_even_the_slowest_takes_few_integers() -> None:
    hours = of(10 * 3600 * 1000 * MILLISECOND)
    assert len(hours.buckets) < 200
    assert len(pickle.dumps(hours)) < 600


def test_sum_adds_all_but_the_largest_number_in_flight() -> None:
    one = Stats(reads=1, errors_by_command={"read": 2}, in_flight=3, max_in_flight=7)
    other = Stats(reads=4, errors_by_command={"read": 1, "flush": 1}, max_in_flight=5)
    other.latency["read"].add(5)
    total = Stats.sum([one, other])
    assert total == Stats(
        reads=5,
        errors_by_command={"read": 3, "flush": 1},
        in_flight=3,
        max_in_flight=7,
        latency=Stats().latency | {"read": of(5)},
    )
    assert total.errors == 4


def test_copy_stays_as_it_is_and_travels() -> None:
    stats = Stats(errors_by_command={"read": 1})
    copy = stats.copy()
    stats.latency["write"].add(9)
    stats.errors_by_command["read"] = 2
    assert copy == Stats(errors_by_command={"read": 1}) != stats
    assert pickle.loads(pickle.dumps(stats)) == stats


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A clock that advances only when the test calls this, by milliseconds."""
    now = [MILLISECOND]
    for module in (pacing, reply_sender, scheduler, slices):
        monkeypatch.setattr(module, "monotonic_ns", lambda: now[0])

    def pass_time(milliseconds: int) -> None:
        now[0] += milliseconds * MILLISECOND

    return pass_time


async def test_latency_is_from_arrival_to_reply(pass_time: Callable[[int], None]) -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(Command.READ, 0, 512)
        read = await device.calls.get()
        pass_time(10)
        server.client.send(Command.FLUSH)
        flush = await device.calls.get()
        pass_time(20)
        read.succeed()
        await server.client.reply()
        pass_time(40)
        flush.fail(OSError("no"))
        await server.client.reply()
        assert server.stats.latency["read"] == of(30 * MILLISECOND)
        assert server.stats.latency["flush"] == of(60 * MILLISECOND)
        assert server.stats.max_in_flight == 2


@pytest.mark.parametrize("command", [Command.READ, Command.FLUSH])
async def test_latency_of_a_failure_or_another_run_is_from_arrival_too(
    pass_time: Callable[[int], None], command: Command
) -> None:
    device, length = PuppetDevice(), 512 if command == Command.READ else 0
    async with served(device) as server:
        pass_time(1000)
        for failure in OSError("no"), None:
            server.client.send(command, 0, length)
            call = await device.calls.get()
            pass_time(10)
            if failure is None:
                call.cancel()
                call = await device.calls.get()
                call.succeed()
            else:
                call.fail(failure)
            await server.client.reply()
        latency = server.stats.latency[command.name.lower()]
        assert latency == of(*[10 * MILLISECOND] * 2)


async def test_time_in_the_queue_counts(pass_time: Callable[[int], None]) -> None:
    device = PuppetDevice()
    async with served(device, concurrency=1) as server:
        for _ in range(2):
            server.client.send(Command.READ, 0, 512)
        await server.accepted()
        for _ in range(2):
            call = await device.calls.get()
            pass_time(10)
            call.succeed()
            await server.client.reply()
        assert server.stats.latency["read"] == of(10 * MILLISECOND, 20 * MILLISECOND)


async def test_requests_of_one_batch_are_counted_by_command(
    pass_time: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (scheduler, pacing):
        monkeypatch.setattr(module, "SLICE", 1000 * MILLISECOND)  # all are served in one

    class Slow(MemoryDevice):
        async def read(self, offset: int, length: int) -> bytes | memoryview:
            pass_time(1)  # without waiting: replies leave together
            return await super().read(offset, length)

    asked = [Command.READ, Command.READ, Command.FLUSH, Command.READ, 99, Command.FLUSH]
    async with served(Slow(1 << 20)) as server:
        messages = [
            server.client.request(command, 0, 4096 if command == Command.READ else 0)[1]
            for command in asked
        ]
        await server.arrive(b"".join(messages))
        await server.client.replies(len(asked))
        stats = server.stats
    counts = {name: latency.count for name, latency in stats.latency.items() if latency.count}
    assert counts == {"read": 3, "flush": 2, "unknown": 1}
    assert stats.latency["read"] == of(*[3 * MILLISECOND] * 3)
    assert stats.max_in_flight == 6
    assert stats.errors_by_command == {"unknown": 1}


async def test_refused_requests_are_errors_of_their_command() -> None:
    class ReadOnly(BlockDevice):
        blocks = 1

    async with served(ReadOnly()) as server:
        await server.client.call(Command.TRIM, 0, 4096)
        await server.client.call(Command.READ, 4096, 4096)
        assert server.stats.errors_by_command == {"trim": 1, "read": 1}
