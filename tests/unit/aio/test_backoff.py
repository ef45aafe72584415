"""Retry with backoff: which failures are retried, and what is logged."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

import pytest

from aiovblk.aio import backoff
from aiovblk.aio.backoff import RetryLog, retry


def classify(failure: Exception) -> tuple[OSError, bool]:
    return OSError(errno.EIO, f"store/a: {failure}"), isinstance(failure, ConnectionError)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "NOTICE_DELAY", 0.0)


class Request:
    """Fails until the log has said something, and one more time."""

    def __init__(self, logged: Callable[[], bool], failure: Exception | None = None) -> None:
        self._logged = logged
        self._failure = failure or ConnectionError("no answer")

    async def __call__(self) -> str:
        if not self._logged():
            raise self._failure
        return "done"


@pytest.mark.usefixtures("at_once")
async def test_retries_are_logged_with_their_reason_and_so_is_their_success(
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = Request(lambda: bool(caplog.messages))
    assert await retry(request, classify, timeout=1000) == "done"
    first, last = caplog.messages
    assert first == "retrying, for up to 1000 s more: store/a: no answer"
    assert last.startswith("succeeded after ")
    assert last.endswith(": store/a: no answer")


@pytest.mark.usefixtures("at_once")
async def test_outage_of_many_requests_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    failed = set[int]()
    all_failed = asyncio.Event()

    async def request(number: int) -> None:
        failed.add(number)
        if len(failed) == 20:
            all_failed.set()
        if not (all_failed.is_set() and caplog.messages):
            raise ConnectionError("no answer")

    notices = RetryLog()
    await asyncio.gather(
        *(
            retry(lambda number=number: request(number), classify, notices=notices)  # type: ignore[misc]
            for number in range(20)
        )
    )
    logged = [each for each in caplog.messages if each.startswith("retrying")]
    assert len(logged) == 1


async def test_short_retry_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = iter([ConnectionError("a"), ConnectionError("b"), None])

    async def request() -> None:
        failure = next(attempts)
        if failure:
            raise failure

    await retry(request, classify)
    assert caplog.messages == []


@pytest.mark.usefixtures("at_once")
async def test_permanent_failure_is_raised_at_once_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def request() -> None:
        raise ValueError("no such bucket")

    with pytest.raises(OSError, match="store/a: no such bucket"):
        await retry(request, classify)
    assert caplog.messages == []


@pytest.mark.usefixtures("at_once")
async def test_nothing_is_logged_after_a_request_was_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = asyncio.Event()

    async def request() -> None:
        failed.set()
        raise ConnectionError("no answer")

    task = asyncio.create_task(retry(request, classify))
    await failed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(caplog.messages) <= 1  # it may have been logged in between
