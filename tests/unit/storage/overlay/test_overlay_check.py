"""Overlays of all kinds pass the test kit for devices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import FileDevice, MemoryDevice, Overlay
from aiovblk.testing import CrashableDisk, check_block_device

from ....support.sizes import by_size
from ...testing.test_check import Moody

pytestmark = [pytest.mark.slow, pytest.mark.either_loop]

KIB = 1024


async def a_base(size: int, block_size: int, seed: int) -> BlockDevice:
    """Make a base, half of which is written."""
    random = Random(seed)
    base = MemoryDevice(size, block_size=block_size)
    for offset in range(0, min(size, 1 << 20), 16 * block_size):
        if random.random() < 0.5:
            await base.write(offset, memoryview(random.randbytes(16 * block_size)))
    return base


class Bench:
    """Media that lose power together, and the overlay of them."""

    def __init__(
        self, open: Callable[[Bench], Any], media: dict[str, CrashableDisk], base: BlockDevice
    ) -> None:
        self.media = media
        self.base = base
        self.open = lambda: open(self)

    def crash(self, device: BlockDevice) -> None:
        for medium in self.media.values():
            medium.crash()


async def reopened(bench: Bench) -> Overlay:
    return await Overlay.open(bench.base, bench.media["diff"].open())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("size", "larger", "block"),
    [(256 * KIB, 0, 512), (512 * KIB, 64 * KIB, 4096), (16 << 20, 0, 512), (1 << 30, 1 << 20, 512)],
)
@pytest.mark.deadline(120)
async def test_overlay_passes_with_crashes(size: int, larger: int, block: int, seed: int) -> None:
    base = await a_base(size, block, seed)
    size = base.size + larger
    medium = CrashableDisk(Overlay.diff_size(base, size=size), block, seed)
    await (await Overlay.create(base, medium.open(), size=size)).unmount()
    bench = Bench(reopened, {"diff": medium}, base)
    await check_block_device(bench.open, crash=bench.crash, seed=seed, rounds=by_size(30, 60))


@pytest.mark.parametrize("seed", range(2))
async def test_overlay_passes_over_a_diff_that_fails_requests(seed: int) -> None:
    base = await a_base(256 * KIB, 512, seed)
    medium = CrashableDisk(Overlay.diff_size(base), 512, seed)
    random = Random(seed)
    await (await Overlay.create(base, medium.open())).unmount()

    class Forgiven(Overlay):
        async def unmount(self) -> None:
            with suppress(OSError):  # of the last flush, since the one before has failed too
                await super().unmount()

    async def moody(bench: Bench) -> Overlay:
        while True:
            diff = Moody(medium.open(), random)
            try:
                return await Forgiven.open(base, diff)
            except OSError:
                await diff.unmount()

    bench = Bench(moody, {"diff": medium}, base)
    await check_block_device(bench.open, crash=bench.crash, seed=seed, rounds=by_size(30, 60))


@pytest.mark.parametrize("size", [256 * KIB, 1 << 30])
async def test_overlay_in_a_file_passes(tmp_path: Path, size: int) -> None:
    await FileDevice.create(tmp_path / "base", size).unmount()

    async def open_files() -> Overlay:
        return await Overlay.file(
            FileDevice(tmp_path / "base", read_only=True), tmp_path / "diff", identity="base"
        )

    async def unmount(device: BlockDevice) -> None:
        await device.unmount()

    await check_block_device(open_files, rounds=by_size(20, 40))
    await check_block_device(open_files, crash=unmount, seed=1, rounds=by_size(20, 40))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.deadline(120)
async def test_overlay_that_is_committed_in_between_passes_with_crashes(seed: int) -> None:
    random = Random(seed)

    class Committing(Overlay):
        async def flush(self) -> None:
            if random.random() < 0.3:
                await self.commit()
            await super().flush()

    async def open_both(bench: Bench) -> Overlay:
        return await Committing.open(bench.media["base"].open(), bench.media["diff"].open())

    base = CrashableDisk(512 * KIB, 512, seed)
    diff = CrashableDisk(Overlay.diff_size(device := base.open(), size=256 * KIB), 512, seed + 1)
    await (await Overlay.create(device, diff.open(), size=256 * KIB)).unmount()
    bench = Bench(open_both, {"base": base, "diff": diff}, device)
    await check_block_device(bench.open, crash=bench.crash, seed=seed, rounds=by_size(30, 60))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.deadline(120)
async def test_overlay_that_is_rebased_in_between_passes_with_crashes(seed: int) -> None:
    random = Random(seed)
    bases = {f"base {size}": await a_base(size, 512, size) for size in (128 * KIB, 320 * KIB)}

    class Rebasing(Overlay):
        async def flush(self) -> None:
            if random.random() < 0.3:
                name = random.choice(list(bases))
                await self.rebase(bases[name], identity=name)
            await super().flush()

    async def open_over_the_right_one(bench: Bench) -> Overlay:
        device = medium.open()
        for name, base in bases.items():
            try:
                return await Rebasing.open(base, device, identity=name)
            except ValueError:
                continue
        raise AssertionError("it lies over none of them")

    size, base = 256 * KIB, bases[smaller := f"base {128 * KIB}"]
    medium = CrashableDisk(Overlay.diff_size(base, size=size), 512, seed)
    await (await Overlay.create(base, medium.open(), size=size, identity=smaller)).unmount()
    bench = Bench(open_over_the_right_one, {"diff": medium}, base)
    await check_block_device(bench.open, crash=bench.crash, seed=seed, rounds=by_size(30, 60))
