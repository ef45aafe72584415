"""Devices by ublk that have an identity, before a driver that can recover."""

from __future__ import annotations

import os

import pytest

from aiovblk.device import BlockDevice
from aiovblk.kernel import RequestQueue, locks
from aiovblk.storage import MemoryDevice
from aiovblk.ublk import identities, stopping, takeover
from aiovblk.ublk.commands import RECOVERY, Feature, State, UblkDeviceInfo
from aiovblk.ublk.identified import IdentifiedAttachment
from aiovblk.ublk.identities import mark_of

from .kernel_tree import KernelTree
from .recovering_driver import SOUND, RecoveringDriver

SIZE = 1 << 20
DISK = MemoryDevice(SIZE, block_size=4096)
QUEUE = RequestQueue()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look at what does not change, instead of some for seconds."""
    monkeypatch.setattr(identities, "LOCK_TIMEOUT", 0)
    monkeypatch.setattr(takeover, "DEATH_TIMEOUT", 0)
    monkeypatch.setattr(stopping, "UNUSED_TIMEOUT", 0)


def take_over(
    path: str | None = None, device: BlockDevice = DISK, survive: float = 60
) -> IdentifiedAttachment | None:
    return takeover.take_over_orphan(path, device, QUEUE, identity="volume", survive=survive)


def info_of(number: int, state: State = State.QUIESCED, identity: str = "volume") -> UblkDeviceInfo:
    flags = Feature.USER_COPY | RECOVERY
    return UblkDeviceInfo(number=number, flags=flags, state=state, mark=mark_of(identity))


def is_locked(number: int) -> bool:
    try:
        os.close(locks.acquire(f"ublkb{number}"))
    except BlockingIOError:
        return True
    return False


@pytest.fixture
def orphan(driver: RecoveringDriver, tree: KernelTree) -> int:
    """A device of the identity ``volume`` whose server is gone; beside it, another program's."""
    driver.make(UblkDeviceInfo(number=0, flags=SOUND, state=State.LIVE), SIZE)
    driver.make(info_of(2), SIZE)
    tree.write(tree.block / "ublkb2/queue/logical_block_size", "4096\n")
    lock = locks.acquire("ublkb2")
    locks.write_owner(lock)
    os.close(lock)
    return 2
