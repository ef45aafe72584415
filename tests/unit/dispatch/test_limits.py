"""The limits of handlers that mount and serve share."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from aiovblk.dispatch import DEFAULT_SLOW_REQUEST, MAX_CONCURRENCY, HandlerLimits


def test_default_limits_are_those_of_mount_and_serve() -> None:
    limits = HandlerLimits()
    assert limits.concurrency == MAX_CONCURRENCY
    assert limits.handler_timeout is None
    assert limits.slow_request == DEFAULT_SLOW_REQUEST


def test_limits_are_immutable_and_reach_worker_processes() -> None:
    limits = HandlerLimits(concurrency=3, handler_timeout=1.5, slow_request=None)
    assert pickle.loads(pickle.dumps(limits)) == limits
    with pytest.raises(FrozenInstanceError):
        limits.concurrency = 4  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"concurrency": 0}, ValueError, "concurrency must be at least 1, not 0"),
        ({"concurrency": 1.5}, TypeError, "concurrency must be a whole number, not 1.5"),
        ({"handler_timeout": 0}, ValueError, "handler_timeout must be a positive number"),
        ({"handler_timeout": "1"}, TypeError, "handler_timeout must be a number of seconds"),
        ({"slow_request": float("nan")}, ValueError, "slow_request must be a positive number"),
        ({"busy_poll": 0}, ValueError, "busy_poll must be from 1 to 1000000, not 0"),
        ({"busy_poll": 10**7}, ValueError, "busy_poll must be from 1 to 1000000, not 10000000"),
        ({"busy_poll": 0.5}, TypeError, "busy_poll must be a whole number, not 0.5"),
        ({"slow_request": True}, TypeError, "slow_request must be a number of seconds"),
    ],
)
def test_invalid_limits_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        HandlerLimits(**options)
