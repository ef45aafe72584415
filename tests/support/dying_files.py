"""Let a process die before a system call that changes files, without a process of its own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from aiovblk.storage import openfile

_CALLS = (
    (os, "pwrite"),
    (os, "fsync"),
    (os, "fdatasync"),
    (os, "replace"),
    (os, "rename"),
    (os, "unlink"),
    (os, "mkdir"),
    (os, "ftruncate"),
    (openfile, "fallocate"),
)


class Calls:
    """Counts the calls, and fails all from a certain one on, as if there were no process any more.

    Args:
        last: how many calls are made; None for all.

    """

    def __init__(self, last: int | None) -> None:
        self.last = last
        self.made = 0

    @property
    def is_dead(self) -> bool:
        return self.last is not None and self.made > self.last

    def step(self) -> None:
        self.made += 1
        if self.is_dead:
            raise OSError(errno.EIO, "the process is dead")


@contextmanager
def dying_after(last: int | None) -> Iterator[Calls]:
    """Let only so many changes of files be made while the block runs."""
    calls = Calls(last)

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            calls.step()
            return call(*args, **kwargs)

        return make

    patches = [
        mock.patch.object(where, name, counted(getattr(where, name))) for where, name in _CALLS
    ]
    for each in patches:
        each.start()
    try:
        yield calls
    finally:
        for each in patches:
            each.stop()
