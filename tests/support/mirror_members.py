"""Members of mirrors that record their requests, and that fail."""

from __future__ import annotations

import errno
from typing import Any

from aiovblk import BlockDevice
from aiovblk.storage import Fault, Faults
from aiovblk.storage.mirror.members import REGION
from aiovblk.testing import CrashableDisk

BLOCK = 4096
SIZE = 4 * REGION


def block(value: int) -> memoryview:
    return memoryview(bytes([value]) * BLOCK)


class Watched(Faults):
    """A member that records its requests."""

    def __init__(self, inner: BlockDevice, *faults: Fault) -> None:
        super().__init__(inner, *faults)
        self.asked: list[tuple[str, int]] = []

    async def intercept(self, command: str, offset: int, length: int, call: Any) -> Any:
        self.asked.append((command, offset))
        return await super().intercept(command, offset, length, call)

    def regions(self, command: str) -> set[int]:
        return {offset // REGION for name, offset in self.asked if name == command}


def members(count: int = 2, size: int = SIZE) -> list[Watched]:
    return [Watched(CrashableDisk(size, seed=seed).open()) for seed in range(count)]


async def contents(device: BlockDevice) -> bytes:
    return bytes(await device.read(0, device.size))


def failing(command: str) -> Fault:
    return Fault(command, error=errno.EIO, times=1)
