"""What tests compare events of a server by: class name and fields, without the time."""

from __future__ import annotations

from typing import Any

from aiovblk.events import Event, EventStream

LOCAL = "a local client"
NOT_THERE = "the client asked for an export that is not there"


def words(event: Event) -> tuple[Any, ...]:
    """An event's class name and fields, without the time."""
    names: tuple[str, ...] = type(event).__match_args__
    return type(event).__name__, *(getattr(event, name) for name in names)


async def next_words(events: EventStream) -> tuple[Any, ...]:
    return words(await anext(events))


async def everything(events: EventStream) -> list[tuple[Any, ...]]:
    return [words(event) async for event in events]
