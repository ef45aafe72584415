"""What else happens in a world: snapshots, clones and garbage collection, by other processes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from aiovblk.storage.objects import (
    ObjectStoreDevice,
    clone,
    collect_garbage,
    drop_snapshot,
    snapshot,
)

from .world_model import BLOCKS, WrongError, stamps_of
from .world_store import WorldClient

if TYPE_CHECKING:
    from .object_store_worlds import World


async def state_of(device: ObjectStoreDevice) -> list[int]:
    """Return the stamp of each block, zeroes beyond the disk's end, and its size."""
    size = device.size
    found = stamps_of(bytes(await device.read(0, size)))
    return [*found, *[0] * (BLOCKS - len(found)), size]


def refuse_damage(exc: OSError) -> None:
    """Raise WrongError if the store's failures do not explain it."""
    if "damaged" in str(exc):
        raise WrongError(str(exc)) from exc


class Others:
    """Other processes at the same time as a world's writers.

    Attributes:
        kept: the states of snapshots.
        clones: the states of clones, by folder.
        done: whether they are to end.

    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.kept: dict[str, list[int]] = {}
        self.clones: dict[str, list[int]] = {}
        self.done = False

    def start(self) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(each) for each in (self.take_snapshots(), self.collect())]

    async def take_snapshots(self) -> None:
        number = 0
        while not self.done:
            await asyncio.sleep(30 * self.world.random.random())
            number += 1
            name, client = f"s{number}", self.world.store.client()
            action = self.world.random.random()
            with suppress(OSError):
                if action < 0.5:
                    await self.take_snapshot(client, name)
                elif action < 0.6 and self.kept:
                    name = self.world.random.choice(list(self.kept))
                    stamps = self.kept.pop(name)
                    try:
                        await drop_snapshot(client, "disk", name=name, key=self.world.key)
                    except OSError as exc:
                        if "needed by clones" in str(exc):
                            self.kept[name] = stamps
                        raise
                elif action < 0.75 and self.kept:
                    name = self.world.random.choice(list(self.kept))
                    stamps, target = self.kept[name], f"clone{number}"
                    await clone(client, "disk", name=name, target=target, key=self.world.key)
                    self.clones[target] = stamps
                elif self.kept:
                    name = self.world.random.choice(list(self.kept))
                    stamps = self.kept[name]
                    if await self.read(name) != stamps and self.kept.get(name) is stamps:
                        raise WrongError(f"the snapshot {name} has changed")

    async def take_snapshot(self, client: WorldClient, name: str) -> None:
        window, owner = self.world.model.begin(), self.world.owner
        await snapshot(client, "disk", name=name, key=self.world.key)
        is_known = window.is_known and self.world.owner is owner
        window.end()
        found = await self.read(name)
        if is_known:
            window.verify(found, f"snapshot {name}")
        self.kept[name] = found

    async def read(self, name: str | None = None, path: str = "disk") -> list[int]:
        device = await ObjectStoreDevice.open(
            self.world.store.client(), path, key=self.world.key, snapshot=name, read_only=True
        )
        try:
            return await state_of(device)
        except OSError as exc:
            if name is not None and name in self.kept:
                refuse_damage(exc)
            raise
        finally:
            await device.unmount()

    async def collect(self) -> None:
        while not self.done:
            await asyncio.sleep(40 * self.world.random.random())
            with suppress(OSError):
                await collect_garbage(self.world.store.client(), "disk", key=self.world.key)
