"""Each layer keeps the contract of a device, over a disk with power failures."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from random import Random

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import (
    BlockSize,
    Fault,
    Faults,
    Layer,
    MemoryDevice,
    Mirror,
    Partition,
    ReadOnly,
    Retry,
)
from aiovblk.storage import Metered as StatsLayer
from aiovblk.testing import CrashableDisk, check_block_device

from ...support.sizes import by_size

pytestmark = [pytest.mark.slow, pytest.mark.either_loop]

SIZE = 256 * 1024

Upon = Callable[[BlockDevice], BlockDevice]

LAYERS: dict[str, Upon] = {
    "layer": Layer,
    "read-only": ReadOnly,
    "partition": lambda inner: Partition(inner, 3 * 4096, SIZE - 5 * 4096),
    "smaller blocks": lambda inner: BlockSize(inner, 512),
    "stats": StatsLayer,
    "retry": lambda inner: Retry(inner, delay=0),
    "faults": lambda inner: Faults(
        inner, Fault(error=errno.EIO, rate=0.05), Fault(error=errno.EIO, rate=0.05, late=True)
    ),
    "retried faults": lambda inner: Retry(
        Faults(
            inner, Fault(error=errno.EIO, rate=0.2), Fault(error=errno.EIO, rate=0.1, late=True)
        ),
        delay=0,
    ),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", LAYERS)
async def test_layer_keeps_the_contract(name: str, seed: int) -> None:
    medium = CrashableDisk(SIZE, seed=seed)
    await check_block_device(
        lambda: LAYERS[name](medium.open()),
        crash=lambda device: medium.crash(),
        seed=seed,
        rounds=by_size(40, 80),
    )


async def test_larger_blocks_keep_the_contract_but_are_not_atomic_in_a_crash() -> None:
    medium = CrashableDisk(SIZE, seed=3)
    await check_block_device(lambda: BlockSize(medium.open(), 16384), seed=3, rounds=80)


class Pair:
    """Two disks that fail requests, and which of them are dropped from their mirror."""

    def __init__(self, size: int, seed: int, *faults: Fault) -> None:
        self.media = [CrashableDisk(size, seed=2 * seed), CrashableDisk(size, seed=2 * seed + 1)]
        self.faults = faults
        self.random = Random(seed)
        self.stale: set[int] = set()

    async def open(self) -> BlockDevice:
        devices: list[BlockDevice] = [
            Faults(medium.open(), *self.faults, seed=self.random.randrange(1 << 30))
            for medium in self.media
        ]
        mirror = Mirror(
            devices[0],
            devices[1],
            stale=[devices[number] for number in self.stale],
            on_drop=lambda device, error: self.stale.add(devices.index(device)),
        )
        if self.stale and self.random.random() < 0.8:
            number = next(iter(self.stale))
            with contextlib.suppress(OSError):  # retried later
                await mirror.resync(devices[number])
                self.stale.clear()
        return mirror

    def crash(self, device: BlockDevice) -> None:
        for medium in self.media:
            medium.crash()
        if self.faults:  # either may be the last one: so they must be in sync
            self.stale = self.stale or {self.random.randrange(2)}


@pytest.mark.deadline(120)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [SIZE, 8 << 20])
async def test_mirror_keeps_the_contract(size: int, seed: int) -> None:
    pair = Pair(size, seed)
    await check_block_device(pair.open, crash=pair.crash, seed=seed, rounds=by_size(30, 60))


@pytest.mark.deadline(120)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [SIZE, 8 << 20])
async def test_mirror_of_failing_members_keeps_the_contract(size: int, seed: int) -> None:
    faults = [Fault("write", error=errno.EIO, rate=0.02), Fault("read", error=errno.EIO, rate=0.02)]
    faults += [Fault("flush", error=errno.EIO, rate=0.02, late=True)]
    pair = Pair(size, seed, *faults)
    await check_block_device(pair.open, crash=pair.crash, seed=seed, rounds=by_size(30, 60))


async def test_mirror_of_devices_without_a_flush_keeps_the_contract() -> None:
    mirror = Mirror(MemoryDevice(SIZE), MemoryDevice(SIZE), MemoryDevice(SIZE))
    await check_block_device(lambda: mirror, rounds=by_size(30, 60))
