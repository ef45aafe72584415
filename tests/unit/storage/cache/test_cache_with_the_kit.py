"""A cache keeps the contract of a device under every policy, through crashes too."""

from __future__ import annotations

import asyncio
import errno
import sys
from dataclasses import dataclass, field
from random import Random

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import Cache, Layer
from aiovblk.storage.cache import Policy
from aiovblk.testing import CrashableDisk, check_block_device

from ....support.sizes import by_size

pytestmark = [pytest.mark.slow, pytest.mark.either_loop]

SIZE = 4 << 20
LINE = 4 * 4096


class Flaky(Layer):
    """Fails some requests, before or after they are done."""

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self._random = Random(5)

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        self._fail()
        return await self.inner.read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        self._fail()
        await self.inner.write(offset, data)
        self._fail()

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        self._fail()
        await self.inner.write_zeroes(offset, length, may_trim=may_trim)
        self._fail()

    def _fail(self) -> None:
        if self._random.random() < 0.05:
            raise OSError(errno.EIO, "one of a few")


@dataclass
class Bench:
    """A cache over a medium, in memory or on another medium."""

    policy: Policy
    lines: int
    store: CrashableDisk | None
    fails: bool = False
    inner: CrashableDisk = field(default_factory=lambda: CrashableDisk(SIZE, seed=1))

    def open(self) -> BlockDevice:
        inner = self.inner.open()
        return Cache(
            Flaky(inner) if self.fails else inner,
            self.store.open() if self.store else None,
            size=None if self.store else self.lines * LINE,
            policy=self.policy,
            line_size=LINE,
            read_ahead=8 * LINE,
            dirty_limit=16 * 4096,
        )

    def crash(self, device: BlockDevice) -> None:
        self.inner.crash()
        if self.store:
            self.store.crash()


@pytest.mark.parametrize("lines", [1, 24, 1000])
@pytest.mark.parametrize("where", ["memory", "store"])
@pytest.mark.parametrize("policy", ["read", "write-through", "write-back"])
async def test_cache_keeps_the_contract(policy: Policy, where: str, lines: int) -> None:
    store = CrashableDisk(12 * 4096 + lines * LINE, seed=2) if where == "store" else None
    bench = Bench(policy, lines, store)
    await check_block_device(bench.open, crash=bench.crash, seed=lines, rounds=by_size(15, 30))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks do not start eagerly")
@pytest.mark.parametrize("policy", ["write-through", "write-back"])
async def test_cache_keeps_the_contract_when_tasks_start_eagerly(policy: Policy) -> None:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        pytest.skip("uvloop has no task factory of this kind")
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
    bench = Bench(policy, 24, CrashableDisk(1 << 20))
    await check_block_device(bench.open, crash=bench.crash, rounds=by_size(15, 30))


@pytest.mark.parametrize("policy", ["read", "write-through", "write-back"])
async def test_errors_of_the_inner_device_leave_no_block_undefined(policy: Policy) -> None:
    bench = Bench(policy, 24, CrashableDisk(1 << 20), fails=True)
    await check_block_device(bench.open, crash=bench.crash, rounds=by_size(15, 30))
