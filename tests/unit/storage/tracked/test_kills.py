"""Real processes that are killed by SIGKILL: the bitmap is exact."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from random import Random

import pytest

from aiovblk.storage import FileDevice, Tracked

from ....support.killed_tracker import BLOCK, BLOCKS, LIVE
from ....support.sizes import by_size
from .test_tracked import dirty

pytestmark = [pytest.mark.slow, pytest.mark.one_loop, pytest.mark.deadline(1800)]


async def dirty_blocks(tracked: Tracked, name: str) -> set[int]:
    runs = await dirty(tracked, name, tracked.size)
    return {block for first, behind in runs for block in range(first, behind)}


def read_notes(path: Path) -> tuple[set[int], set[int]]:
    """Return the blocks that were noted, and those of them after the point only; delete it."""
    lines = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    at = lines.index(LIVE) if LIVE in lines else len(lines)
    before, after = set(map(int, lines[:at])), set(map(int, lines[at + 1 :]))
    return before | after, after - before


async def test_what_was_changed_before_a_kill_is_dirty(tmp_path: Path) -> None:
    random, size = Random(1), BLOCKS * BLOCK
    await FileDevice.create(tmp_path / "disk", size).unmount()
    written: set[int] = set()
    points = 0
    for number in range(by_size(5, 100)):
        tracked = Tracked(FileDevice(tmp_path / "disk"), tmp_path / "bitmaps", granularity=BLOCK)
        if number % 3 == 0:
            await tracked.add(str(number))
            written.clear()
        name = str(number // 3 * 3)
        before = await tracked.read(0, size)
        await tracked.unmount()
        words = (str(tmp_path), str(number), str(random.randint(2, 200)))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.killed_tracker", *words
        )
        assert await process.wait() == -signal.SIGKILL
        noted, only_later = read_notes(tmp_path / "notes")
        written |= noted
        tracked = Tracked(FileDevice(tmp_path / "disk"), tmp_path / "bitmaps")
        after = await tracked.read(0, size)
        changed = {
            at // BLOCK
            for at in range(0, size, BLOCK)
            if before[at : at + BLOCK] != after[at : at + BLOCK]
        }
        assert changed <= await dirty_blocks(tracked, name) <= written
        if LIVE in await tracked.dirty_bitmaps():
            points += 1
            assert changed & only_later <= await dirty_blocks(tracked, LIVE) <= noted
            await tracked.drop(LIVE)
        else:
            assert not only_later
        if number % 3 == 2:
            await tracked.drop(name)
        await tracked.unmount()
    assert points
