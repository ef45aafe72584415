"""The server's side of a mount without a kernel: its connections lead to clients in the test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

from aiovblk import BlockDevice
from aiovblk.dispatch import HandlerLimits
from aiovblk.kernel import NetlinkAttachment
from aiovblk.mounting.backend import LocalBackend
from aiovblk.mounting.connections import ConnectionGroup
from aiovblk.mounting.handover.connections import take_over
from aiovblk.mounting.handover.endpoint import HandoverResult
from aiovblk.mounting.handover.release import HandoverRelease
from aiovblk.mounting.state import MountState

from .dispatch_client import Client


class FakeAttachment:
    """Records that it is detached."""

    path = "/dev/nbd7"

    def __init__(self, folder: Path) -> None:
        self.lock = os.open(folder, os.O_RDONLY)
        self.is_detached = False

    def detach(self) -> None:
        self.is_detached = True


class Side:
    """A server of a device without a kernel, and its clients in place of the kernel."""

    def __init__(self, device: BlockDevice, connections: int = 1) -> None:
        self.device = device
        self.state = MountState()
        self.events = self.state.broadcaster.subscribe()
        self.group = ConnectionGroup(self.state)
        self.clients: list[Client] = []
        self.backend = LocalBackend(
            device,
            connections=connections,
            limits=HandlerLimits(concurrency=128, handler_timeout=None, slow_request=None),
        )

    async def start(self) -> None:
        await self.backend.open(self.group)
        for kernel in await self.group.connect():
            self.clients.append(Client(*await asyncio.open_unix_connection(sock=kernel)))
        self.group.start()

    async def take_over(self, given: HandoverResult) -> None:
        await self.backend.open(self.group)
        prepare = partial(self.backend.open_replacement, None)
        await take_over(self.group, given.connections, prepare)
        os.close(given.lock)
        self.group.start()

    def release(self, folder: Path, timeout: float = 5) -> tuple[HandoverRelease, FakeAttachment]:
        attachment = FakeAttachment(folder)
        group = self.group
        return HandoverRelease(
            self.device, group, cast(NetlinkAttachment, attachment), timeout
        ), attachment

    async def close(self) -> None:
        self.group.abort()
        await asyncio.wait([self.state.stream_ended], timeout=0)
        for client in self.clients:
            client.writer.close()


@asynccontextmanager
async def side(device: BlockDevice, connections: int = 1) -> AsyncIterator[Side]:
    made = Side(device, connections)
    try:
        yield made
    finally:
        await made.close()
