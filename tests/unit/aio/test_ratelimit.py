"""Token buckets, and the fair queue before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from aiovblk.aio.ratelimit import Clock, RateLimiter, TokenBucket

from ...support.clocks import ManualClock


async def run_ready() -> None:
    """Let every task go on until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


class Callers:
    """Callers of a limiter, and who was let through, in order."""

    def __init__(self, *limits: tuple[float, float] | None) -> None:
        self.clock = ManualClock()
        self.limiter = RateLimiter(self.clock)
        self.limiter.set_limits(limits)
        self.passed: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def call(self, name: str, *costs: float) -> None:
        self.tasks[name] = asyncio.create_task(self._call(name, costs))
        await run_ready()

    async def _call(self, name: str, costs: Sequence[float]) -> None:
        await self.limiter.acquire(costs)
        self.passed.append(name)

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await run_ready()

    async def cancel(self, name: str) -> None:
        self.tasks.pop(name).cancel()
        await run_ready()


@pytest.fixture
async def callers() -> AsyncIterator[Callers]:
    """Callers of a limiter of 10 per second, 10 of them at once."""
    callers = Callers((10, 10))
    yield callers
    for task in callers.tasks.values():
        task.cancel()
    await run_ready()
    assert callers.clock.timers == []


# The bucket


def test_bucket_is_full_at_first_and_refills_up_to_its_capacity() -> None:
    bucket = TokenBucket(10, 20, 0)
    assert bucket.delay(20, 0) == 0
    bucket.take(20)
    assert bucket.delay(5, 0) == 0.5
    assert bucket.delay(5, 0.25) == 0.25
    assert bucket.delay(20, 1000) == 0
    bucket.take(20)
    assert bucket.delay(1, 1000) == 0.1


def test_cost_above_the_capacity_waits_for_a_full_bucket_and_leaves_a_debt() -> None:
    bucket = TokenBucket(10, 20, 0)
    bucket.take(5)
    assert bucket.delay(100, 0) == 0.5
    bucket.take(100)
    assert bucket.delay(1, 0.5) == 8.1


def test_bucket_without_capacity_spaces_its_callers() -> None:
    bucket = TokenBucket(10, 0, 0)
    assert bucket.delay(1, 0) == 0
    bucket.take(1)
    assert bucket.delay(1, 0) == 0.1


def test_tokens_that_are_given_back_do_not_exceed_the_capacity() -> None:
    bucket = TokenBucket(10, 20, 0)
    bucket.take(-100)
    bucket.take(20)
    assert bucket.delay(1, 0) == 0.1


@pytest.mark.parametrize(("rate", "delay"), [(100, 1), (1, 10)])
def test_debt_is_paid_in_tokens_or_seconds_whichever_is_sooner(rate: float, delay: float) -> None:
    bucket = TokenBucket(10, 0, 0)
    bucket.take(100)
    bucket.change(rate, 0, 0)
    assert bucket.delay(1, 0) == delay


def test_smaller_capacity_drops_what_was_saved() -> None:
    bucket = TokenBucket(10, 100, 0)
    bucket.change(10, 1, 0)
    bucket.take(1)
    assert bucket.delay(1, 0) == 0.1


# The queue


async def test_those_whom_the_burst_allows_pass_without_a_turn_of_the_loop() -> None:
    limiter = RateLimiter(ManualClock())
    limiter.set_limits([(10, 10)])
    for _ in range(10):
        with pytest.raises(StopIteration):
            limiter.acquire([1]).send(None)


async def test_they_pass_in_the_order_of_their_arrival(callers: Callers) -> None:
    for name, cost in {"burst": 10, "large": 5, "small": 1}.items():
        await callers.call(name, cost)
    assert callers.passed == ["burst"]
    await callers.advance(0.4)
    assert callers.passed == ["burst"]
    await callers.advance(0.15)
    assert callers.passed == ["burst", "large"]
    await callers.advance(0.1)
    assert callers.passed == ["burst", "large", "small"]


async def test_one_timer_is_set_however_many_wait(callers: Callers) -> None:
    for number in range(20):
        await callers.call(f"{number}", 5)
    assert len(callers.passed) == 2
    assert len(callers.clock.timers) == 1
    await callers.advance(5)
    assert len(callers.passed) == 12


async def test_rate_holds_in_the_long_run_for_requests_above_the_burst(callers: Callers) -> None:
    for number in range(10):
        await callers.call(f"{number}", 100)
    await callers.advance(0)
    assert len(callers.passed) == 1
    await callers.advance(89.9)
    # The first pays with the burst, each of the others waits for a full one.
    assert len(callers.passed) == 9
    await callers.advance(0.2)
    assert len(callers.passed) == 10


async def test_all_limits_have_to_allow_it() -> None:
    callers = Callers((100, 100), (1, 1), None)
    await callers.call("first", 10, 1, 1e9)
    await callers.call("second", 10, 1, 1e9)
    assert callers.passed == ["first"]
    await callers.advance(1)
    assert callers.passed == ["first", "second"]
    await callers.call("large", 1000, 0, 0)
    await callers.call("free of both", 0, 0, 5)
    await callers.advance(0.1)
    assert callers.passed[2:] == ["large", "free of both"]


async def test_who_waits_no_longer_than_timers_are_fine_passes(callers: Callers) -> None:
    await callers.call("burst", 10)
    await callers.advance(0.0995)
    await callers.call("a little early", 1)
    assert callers.passed == ["burst", "a little early"]
    assert callers.clock.timers == []


async def test_cancelled_first_takes_nothing_and_the_next_moves_up(callers: Callers) -> None:
    await callers.call("burst", 10)
    await callers.call("large", 10)
    await callers.call("small", 1)
    await callers.cancel("large")
    await callers.advance(0.1)
    assert callers.passed == ["burst", "small"]


async def test_cancelled_in_the_middle_takes_nothing(callers: Callers) -> None:
    for name, cost in {"burst": 10, "first": 1, "middle": 9, "last": 1}.items():
        await callers.call(name, cost)
    await callers.cancel("middle")
    await callers.advance(0.2)
    assert callers.passed == ["burst", "first", "last"]


async def test_who_is_cancelled_just_when_it_is_let_through_gives_back(callers: Callers) -> None:
    await callers.call("burst", 10)
    await callers.call("cancelled", 1)
    await callers.call("next", 1)
    callers.clock.advance(0.1)
    await callers.cancel("cancelled")
    assert callers.passed == ["burst", "next"]


async def test_cancelled_and_due_at_once_is_not_let_through(callers: Callers) -> None:
    await callers.call("burst", 10)
    await callers.call("cancelled", 1)
    await callers.call("next", 1)
    callers.tasks.pop("cancelled").cancel()
    callers.clock.advance(0.1)
    await run_ready()
    assert callers.passed == ["burst", "next"]


async def test_higher_limit_lets_those_through_who_wait(callers: Callers) -> None:
    await callers.call("burst", 10)
    await callers.call("next", 10)
    callers.limiter.set_limits([(100, 10)])
    await callers.advance(0.1)
    assert callers.passed == ["burst", "next"]


async def test_limit_that_is_lifted_lets_all_through(callers: Callers) -> None:
    await callers.call("burst", 10)
    for number in range(3):
        await callers.call(f"{number}", 1000)
    callers.limiter.set_limits([None])
    await run_ready()
    assert callers.passed == ["burst", "0", "1", "2"]


async def test_lower_limit_holds_for_those_who_wait(callers: Callers) -> None:
    await callers.call("burst", 10)
    await callers.call("next", 1)
    callers.limiter.set_limits([(1, 10)])
    await callers.advance(0.5)
    assert callers.passed == ["burst"]
    await callers.advance(0.5)
    assert callers.passed == ["burst", "next"]


async def test_clock_of_the_loop_lets_through_in_time() -> None:
    limiter = RateLimiter(Clock())
    limiter.set_limits([(1000, 0)])
    for _ in range(3):
        await limiter.acquire([5])
