"""The messages between a parent process and its worker process."""

from __future__ import annotations

from typing import Any, NamedTuple


class StartupMessage(NamedTuple):
    """The first message to a worker: its setup, and how to import the parent's modules."""

    data: dict[str, Any]
    """The preparation data of :mod:`multiprocessing`, as for a process that it spawns."""
    is_uvloop: bool
    """Whether to run uvloop, as the parent does."""
    log_level: int
    """Level of the worker's root logger."""


class Call(NamedTuple):
    """From the parent: call a method of the service.

    The arguments, which may contain user code, are pickled separately: if they cannot be loaded,
    the call fails, and not the channel.
    """

    number: int
    """Identifies the call in its result."""
    name: str
    """Name of the method."""
    arguments: bytes
    """The positional arguments, a pickled tuple."""
    sockets: int = 0
    """How many sockets come with it. Fewer arrive if the worker has no descriptor left for them."""


class Result(NamedTuple):
    """From the worker: the result of a call, or its exception."""

    number: int
    """That of the call."""
    content: bytes
    """The pickled result or exception; empty if the exception cannot be pickled."""
    error: str = ""
    """The exception's ``repr()``; empty if the call succeeded."""


class Notification(NamedTuple):
    """From the worker: a notification that the service sends without being called."""

    name: str
    """What it is about; see the service."""
    arguments: tuple[Any, ...]
