"""Backups of small disks, and what is true of a target whatever has happened to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest import mock

from aiovblk import BlockDevice
from aiovblk.storage.backup import DiskSource, ObjectTarget, backup, moving, spans
from aiovblk.storage.backup.targets import Target

from .object_store import BLOCK, SIZE, Bucket, Client, contents, open_disk

BLOCKS = SIZE // BLOCK

States = dict[str, bytes]
"""The contents of each backup of a target, by its name."""


@contextmanager
def in_small_pieces() -> Iterator[None]:
    """Copy two blocks at a time, and note the progress after four."""
    with (
        mock.patch.object(moving, "PIECE", 2 * BLOCK),
        mock.patch.object(spans, "PIECE", 2 * BLOCK),
        mock.patch.object(moving, "NOTE_BYTES", 4 * BLOCK),
    ):
        yield


async def states_of(target: Target) -> States:
    """Read all backups of a target; verified, as every restore is."""
    found = {}
    for each in await target.backups():
        async with target.read(each.name) as device:
            assert device.size == each.size
            found[each.name] = await read_all(device)
    return found


async def read_all(device: BlockDevice) -> bytes:
    return bytes(await device.read(0, device.size))


async def change(device: BlockDevice, random: Random, count: int = 4) -> None:
    """Write, and zero, a few blocks at random."""
    size = device.size // BLOCK
    for _ in range(count):
        first = random.randrange(size)
        blocks = random.randint(1, min(6, size - first))
        if random.random() < 0.3:
            await device.write_zeroes(first * BLOCK, blocks * BLOCK, may_trim=True)
        else:
            data = b"".join(random.randbytes(8) * (BLOCK // 8) for _ in range(blocks))
            await device.write(first * BLOCK, memoryview(data))


class Buckets:
    """A live disk in one bucket, and its backups in another.

    Attributes:
        states: what the backups hold, by name.
        random: chooses what is written.

    """

    def __init__(self, seed: int = 0) -> None:
        self.source, self.target = Bucket(), Bucket()
        self.states: States = {}
        self.random = Random(seed)

    def copy(self) -> Buckets:
        """Return another world in which all is as it is now."""
        other = Buckets()
        other.random.setstate(self.random.getstate())
        other.source.objects |= self.source.objects
        other.target.objects |= self.target.objects
        other.states |= self.states
        return other

    async def write(self) -> bytes:
        """Change the disk; return what it holds then."""
        self.source.forget_lease()
        device = await open_disk(self.source.client())
        await change(device, self.random)
        await device.unmount()
        return await contents(self.source)

    def clients(self, crash_after: int | None = None) -> tuple[Client, Client]:
        """Return the clients of one new process, which crashes after so many changes of both."""
        source = self.source.client(crash_after=crash_after)
        return source, Client(self.target, "", source.process)

    def forget_lease(self) -> None:
        """Let the crashed process be forgotten, as it is on its own machine."""
        self.target.forget_lease()

    async def backup(self, clients: tuple[Client, Client] | None = None, **options: Any) -> None:
        """Back up, one request at a time."""
        source, target = clients or self.clients()
        await backup(
            DiskSource(source, "disk"), ObjectTarget(target, "disk"), requests=1, **options
        )

    async def verify(self, present: bytes) -> bool:
        """Verify that the target is what it was before, or has ``present`` as well.

        Returns:
            Whether it has.

        """
        try:
            found = await states_of(ObjectTarget(self.target.client(), "disk"))
        except FileNotFoundError:
            found = {}
        new = found.keys() - self.states.keys()
        assert {name: found[name] for name in self.states} == self.states
        assert [found[name] for name in new] in ([], [present])
        self.states = found
        return bool(new)
