"""What a parent and its worker tell each other."""

from __future__ import annotations

from typing import Any, NamedTuple


class StartupMessage(NamedTuple):
    """The first message: what the worker needs to find the parent's modules."""

    data: dict[str, Any]
    """What :mod:`multiprocessing` hands to a process that it spawns."""
    is_uvloop: bool
    log_level: int


class Call(NamedTuple):
    """The parent calls a method of the service.

    What user code is part of is pickled by itself: if it cannot be loaded, the call fails, and not
    the channel.
    """

    number: int
    name: str
    arguments: bytes
    sockets: int = 0
    """How many come with it. Fewer arrive where the worker has no descriptor left for them."""


class Result(NamedTuple):
    """What became of a call."""

    number: int
    content: bytes
    """The result; or the exception, or nothing where that cannot be pickled."""
    error: str = ""
    """The exception in words; empty for none."""


class Notification(NamedTuple):
    """The service tells something of its own accord."""

    name: str
    arguments: tuple[Any, ...]
