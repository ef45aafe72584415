"""Requests that are repeated, and what the log says of them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

import pytest

from aiovblk.aio import backoff
from aiovblk.aio.backoff import RetryLog, retry


def explain(failure: Exception) -> tuple[OSError, bool]:
    return OSError(errno.EIO, f"store/a: {failure}"), isinstance(failure, ConnectionError)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "NOTICE_DELAY", 0.0)


class Request:
    """Fails until the log has said something, and one more time."""

    def __init__(self, logged: Callable[[], bool], failure: Exception | None = None) -> None:
        self._logged = logged
        self._failure = failure or ConnectionError("nobody there")

    async def __call__(self) -> str:
        if not self._logged():
            raise self._failure
        return "done"


@pytest.mark.usefixtures("at_once")
async def test_log_says_what_is_repeated_and_why_and_that_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = Request(lambda: bool(caplog.messages))
    assert await retry(request, explain, timeout=1000) == "done"
    first, last = caplog.messages
    assert first == "retrying, for up to 1000 s more: store/a: nobody there"
    assert last.startswith("succeeded after ")
    assert last.endswith(": store/a: nobody there")


@pytest.mark.usefixtures("at_once")
async def test_outage_of_many_requests_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    failed = set[int]()
    everyone = asyncio.Event()

    async def request(number: int) -> None:
        failed.add(number)
        if len(failed) == 20:
            everyone.set()
        if not (everyone.is_set() and caplog.messages):
            raise ConnectionError("nobody there")

    notices = RetryLog()
    await asyncio.gather(
        *(
            retry(lambda number=number: request(number), explain, notices=notices)  # type: ignore[misc]
            for number in range(20)
        )
    )
    told = [each for each in caplog.messages if each.startswith("retrying")]
    assert len(told) == 1


async def test_request_that_is_repeated_for_a_moment_is_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = iter([ConnectionError("a"), ConnectionError("b"), None])

    async def request() -> None:
        failure = next(attempts)
        if failure:
            raise failure

    await retry(request, explain)
    assert caplog.messages == []


@pytest.mark.usefixtures("at_once")
async def test_failure_for_good_is_raised_at_once_and_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def request() -> None:
        raise ValueError("no such bucket")

    with pytest.raises(OSError, match="store/a: no such bucket"):
        await retry(request, explain)
    assert caplog.messages == []


@pytest.mark.usefixtures("at_once")
async def test_nothing_is_told_after_a_request_was_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = asyncio.Event()

    async def request() -> None:
        failed.set()
        raise ConnectionError("nobody there")

    task = asyncio.create_task(retry(request, explain))
    await failed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(caplog.messages) <= 1  # it may have been told in between
