"""A mount that is cancelled before it is live."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

import aiovblk
from aiovblk.mounting import attaching, lifecycle

from .support import Disk, becomes_free

# Processes that are started, and the kernel: which loop runs makes little difference.
pytestmark = [pytest.mark.one_loop, pytest.mark.deadline(600)]


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited for these would not end."""
    monkeypatch.setattr(attaching, "ATTACH_TIMEOUT", 3600.0)
    monkeypatch.setattr(lifecycle, "ATTACH_TIMEOUT", 3600.0)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("options", [{}, {"partitions": True}])
async def test_a_first_read_that_hangs_is_given_up_and_the_device_let_go(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    disk.gate.clear()
    caplog.set_level(logging.WARNING)
    task = asyncio.create_task(aiovblk.mount(disk, "/dev/nbd5", unmount_timeout=0.5, **options))
    await disk.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert disk.events == ["flush", "unmount"]
    assert [record.getMessage() for record in caplog.records] == []
    assert await becomes_free("/dev/nbd5")
    disk.gate.set()
    async with aiovblk.mounted(disk, "/dev/nbd5"):
        pass


@pytest.mark.usefixtures("never")
async def test_a_first_read_that_is_answered_late_ends_it_in_order() -> None:
    disk = Disk()
    disk.gate.clear()
    task = asyncio.create_task(aiovblk.mount(disk, "/dev/nbd5", unmount_timeout=3600))
    await disk.arrived.wait()
    task.cancel()
    await asyncio.sleep(0)
    disk.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert disk.events[-2:] == ["flush", "unmount"]
    assert await becomes_free("/dev/nbd5")
