"""Real processes that back up, and are killed: the target is as it was before, or complete."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from aiovblk.storage.backup import DiskSource, backup
from aiovblk.storage.objects import ObjectStoreDevice, check, create, snapshots

from ....support.backups import States, change, read_all, states_of
from ....support.killed_backup import SIZE, open_target
from ....support.sizes import by_size

pytestmark = pytest.mark.slow

KILLS = by_size(4, 50)
"""Of each kind of target."""
ROOT = Path(__file__).parents[4]


def run_until_killed(*words: object) -> bool:
    """Run a backup; return whether it was killed."""
    command = [sys.executable, "-m", "tests.support.killed_backup", *map(str, words)]
    ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr.decode()
    return ended.returncode != 0


async def write(url: str, random: Random) -> bytes:
    device = await ObjectStoreDevice.open(url)
    await change(device, random)
    await device.flush()
    contents = await read_all(device)
    await device.unmount()
    return contents


async def found_in(kind: str, path: Path) -> States:
    try:
        return await states_of(open_target(kind, path))
    except FileNotFoundError:
        return {}


@pytest.mark.one_loop
@pytest.mark.deadline(1800)
@pytest.mark.parametrize("kind", ["folder", "file"])
async def test_target_is_whole_after_each_kill(tmp_path: Path, kind: str) -> None:
    random, kills, states = Random(kind), 0, States()
    source, target = tmp_path / "source", tmp_path / "target"
    url = f"file://{source}"
    await create(url, size=SIZE, chunk_size=16384)
    while kills < KILLS:
        present = await write(url, random)
        kills += run_until_killed(source, kind, target, random.randint(1, 150))
        found = await found_in(kind, target)
        if kind == "file":
            assert found == states or [*found.values()] == [present]
        else:
            assert {name: found[name] for name in states} == states
            assert [found[name] for name in found if name not in states] in ([], [present])
        states = found
    present = await write(url, random)
    await backup(DiskSource(url), open_target(kind, target))
    assert [*(await states_of(open_target(kind, target))).values()][-1] == present
    assert await open_target(kind, target).verify(lambda count: None) == []
    assert (await check(url)).problems == []
    assert len(await snapshots(url)) == 1
