"""The contract of a block device, kept by a disk in an object store, through crashes as well."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
from random import Random
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.storage.objects import Limits, ObjectStoreDevice, check, create
from aiovblk.testing import check_block_device

from ....support.object_store import Bucket, Client, undisturbed
from ....support.sizes import by_size

pytestmark = [pytest.mark.slow, pytest.mark.either_loop]

SIZE = (4 << 20) + 3 * 4096
KEY = bytes(range(32))


class Bench:
    """A disk in a bucket, whose writer crashes now and then."""

    def __init__(self, limits: Limits = Limits(), *, fails: float = 0, **options: Any) -> None:  # noqa: B008
        self.bucket = Bucket()
        self.limits = limits
        self.options = options
        self.random = Random(1)
        self.fails = fails  # probability of a request to the store
        self.client: Client

    @property
    def key(self) -> bytes | None:
        key: bytes | None = self.options.get("key")
        return key

    async def check(self, seed: int = 0, rounds: int = by_size(15, 30)) -> None:
        await create(self.bucket.client(), "disk", size=SIZE, **self.options)
        await check_block_device(self.open, crash=self.crash, seed=seed, rounds=rounds)
        assert (await check(self.bucket.client(), "disk", key=self.key)).problems == []

    async def open(self) -> ObjectStoreDevice:
        self.bucket.forget_lease()
        self.client = self.bucket.client()
        device = await ObjectStoreDevice.open(
            self.client, "disk", key=self.key, limits=self.limits, lease=3600
        )
        self.client.before = self.before
        unmount = device.unmount

        async def unmount_undisturbed() -> None:
            self.client.before = undisturbed
            await unmount()

        device.unmount = unmount_undisturbed  # type: ignore[method-assign]
        return device

    def before(self, request: str, path: str) -> Any:
        if self.random.random() < self.fails:
            raise OSError(errno.EIO, "one of a few")
        return asyncio.sleep(0)

    async def crash(self, device: BlockDevice) -> None:
        self.client.crash()
        with contextlib.suppress(OSError):  # only so that its tasks end
            await device.unmount()


@pytest.mark.parametrize("chunk_size", [4096, 16384, 1 << 20])
@pytest.mark.parametrize(
    "options", [{}, {"compress": True}, {"key": KEY}], ids=["plain", "compressed", "encrypted"]
)
async def test_disk_keeps_the_contract(chunk_size: int, options: dict[str, Any]) -> None:
    await Bench(chunk_size=chunk_size, **options).check(seed=chunk_size)


@pytest.mark.parametrize(("unstored", "memory", "requests"), [(0, 0, 1), (4, 2, 2), (16, 1, 32)])
async def test_disk_keeps_the_contract_with_little_memory(
    unstored: int, memory: int, requests: int
) -> None:
    limits = Limits(memory=memory << 14, unstored=unstored << 14, requests=requests)
    await Bench(limits, chunk_size=1 << 14).check(seed=unstored)


async def test_failures_of_the_store_leave_no_block_undecided() -> None:
    # Chunks that were read are cached, so a read that is retried gets further.
    limits = Limits(memory=SIZE, unstored=8 << 16)
    await Bench(limits, fails=0.05, chunk_size=1 << 16).check()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks do not start eagerly")
async def test_disk_keeps_the_contract_when_tasks_start_eagerly() -> None:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        pytest.skip("uvloop has no task factory of this kind")
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
    await Bench(Limits(memory=2 << 14, unstored=8 << 14), chunk_size=1 << 14).check()
