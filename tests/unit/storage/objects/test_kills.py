"""Real processes that write to a disk in a local folder, and are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from aiovblk.storage.objects import ObjectStoreDevice, check, collect_garbage, create

from ....support.killed_writer import BLOCK, BLOCKS, CHUNK, block_of
from ....support.sizes import by_size

pytestmark = pytest.mark.slow

KILLS, DISKS = 8, by_size(1, 25)
ROOT = Path(__file__).parents[4]


class Notes:
    """What the processes have noted; what each block may hold."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self.read = 0
        self.allowed: list[list[int]] = [[0] for _ in range(BLOCKS)]
        self.flushes = 0

    def catch_up(self) -> None:
        lines = self.path.read_bytes().split(b"\n")[:-1]
        for line in lines[self.read :]:
            kind, *numbers = line.split()
            if kind == b"w":
                self.allowed[int(numbers[0])].append(int(numbers[1]))
            elif kind == b"f":
                self.flushes += 1
                self.allowed = [each[-1:] for each in self.allowed]
        self.read = len(lines)

    def verify(self, data: bytes) -> None:
        for block, allowed in enumerate(self.allowed):
            found = data[block * BLOCK : (block + 1) * BLOCK]
            stamp = int.from_bytes(found[:8], "little")
            assert found == block_of(stamp), f"block {block} is torn"
            assert stamp in allowed, f"block {block} is {stamp}, not {allowed}"
            self.allowed[block] = [stamp]


def run_until_killed(*words: object) -> None:
    command = [sys.executable, "-m", "tests.support.killed_writer", *map(str, words)]
    ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


@pytest.mark.one_loop
@pytest.mark.deadline(900)
@pytest.mark.parametrize("seed", range(DISKS))
async def test_what_was_flushed_is_there_after_each_kill(tmp_path: Path, seed: int) -> None:
    random, notes = Random(seed), Notes(tmp_path / "notes")
    url = f"file://{tmp_path}/store"
    await create(url, "disk", size=BLOCKS * BLOCK, chunk_size=CHUNK)
    for number in range(KILLS):
        steps = random.choice([random.randint(1, 40), random.randint(1, 400)])
        run_until_killed(tmp_path / "store", notes.path, seed * KILLS + number, steps)
        notes.catch_up()
        device = await ObjectStoreDevice.open(url, "disk", read_only=True)
        notes.verify(bytes(await device.read(0, BLOCKS * BLOCK)))
        await device.unmount()
        assert (await check(url, "disk")).problems == []
        if random.random() < 0.2:
            await collect_garbage(url, "disk")
    assert notes.flushes
