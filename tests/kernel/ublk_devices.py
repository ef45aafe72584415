"""Devices that are served by ublk: that this kernel has the driver, and that a test leaves none."""

from __future__ import annotations

import asyncio
import gc
import glob
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import aiovblk
from aiovblk.errors import UblkUnavailableError
from aiovblk.ublk import attaching, availability
from aiovblk.ublk.commands import Feature

from ..support.polling import holds_within
from .support import MIB, MOMENT, becomes_true

mounted = partial(aiovblk.mounted, attach="ublk")


def remaining() -> list[str]:
    """All that shows of any ublk device, served or not."""
    nodes = [*glob.glob("/dev/ublkb*"), *glob.glob("/dev/ublkc*")]
    return nodes + glob.glob("/sys/class/ublk-char/*") + glob.glob("/sys/block/ublkb*")


async def nothing_is_left() -> None:
    """Wait until there is no ublk device: one that others had open goes when they close it."""
    await becomes_true(lambda: not remaining())


async def is_gone(node: str) -> None:
    """Wait until a node has gone."""
    await becomes_true(lambda: not os.path.exists(node))


async def assert_lost(fd: int) -> None:
    """A device that is gone fails, until its size is taken away: then it ends at its first byte."""
    with suppress(OSError):
        assert await asyncio.to_thread(os.pread, fd, 4096, 8 * MIB) == b""


def remove_what_is_left() -> None:
    """Have the failure of one test not be that of the next ones."""
    for entry in glob.glob("/sys/class/ublk-char/*"):
        attaching.remove_dead(int(Path(entry).name.removeprefix("ublkc")))


@pytest.fixture(scope="session")
def ublk_driver() -> Feature:
    """What the driver can do, which is loaded; skipped, with the reason, where there is none."""
    try:
        return availability.ensure_available()
    except UblkUnavailableError as exc:
        pytest.skip(exc.reason)


@pytest.fixture
async def by_ublk(ublk_driver: Feature, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Programs attach by ublk, and when the test is over no device is left."""
    monkeypatch.setenv("ATTACH", "ublk")
    yield
    gc.collect()
    # The kernel may be about to remove it.
    await asyncio.to_thread(holds_within, MOMENT, lambda: not remaining())
    left = remaining()
    remove_what_is_left()
    assert left == []
