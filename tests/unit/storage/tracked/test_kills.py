"""Real processes that are killed by SIGKILL: the bitmap is exact."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from random import Random

import pytest

from aiovblk.storage import FileDevice, Tracked

from ....support.killed_tracker import BLOCK, BLOCKS
from ....support.sizes import by_size
from .test_tracked import dirty

pytestmark = [pytest.mark.one_loop, pytest.mark.deadline(900)]


async def test_what_was_written_before_a_kill_is_dirty(tmp_path: Path) -> None:
    random, size = Random(1), BLOCKS * BLOCK
    await FileDevice.create(tmp_path / "disk", size).unmount()
    written: set[int] = set()
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
        notes = tmp_path / "notes"
        written |= set(map(int, notes.read_text().split())) if notes.exists() else set()
        notes.unlink(missing_ok=True)
        tracked = Tracked(FileDevice(tmp_path / "disk"), tmp_path / "bitmaps")
        found = {
            block
            for first, behind in await dirty(tracked, name, size)
            for block in range(first, behind)
        }
        after = await tracked.read(0, size)
        changed = {
            at // BLOCK
            for at in range(0, size, BLOCK)
            if before[at : at + BLOCK] != after[at : at + BLOCK]
        }
        assert changed <= found <= written
        if number % 3 == 2:
            await tracked.drop(name)
        await tracked.unmount()
