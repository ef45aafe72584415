"""A device whose reads fail, and what the log says of it."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from aiovblk import BlockDevice


class Failing(BlockDevice):
    """Each read raises the next of some errors; the last one again and again."""

    blocks = 8

    def __init__(self, *errors: Callable[[], BaseException]) -> None:
        self.errors = list(errors)

    async def read(self, offset: int, length: int) -> bytes:
        raise (self.errors.pop(0) if len(self.errors) > 1 else self.errors[0])()


def eio() -> OSError:
    return OSError(errno.EIO, "backend says no")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]
