"""Blocks and lines of a small cache over a slow device, and requests that begin together."""

from __future__ import annotations

import asyncio
from typing import Any

from .slow_device import settle

BLOCK = 512
LINE = 4 * BLOCK


def block(number: int) -> bytes:
    """The initial contents of a slow device."""
    return bytes([number % 251]) * BLOCK


def new(count: int = 1) -> memoryview:
    return memoryview(b"\xff" * count * BLOCK)


async def begin(*requests: Any) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.ensure_future(request) for request in requests]
    await settle()
    return tasks
