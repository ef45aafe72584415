"""The contract of a block device, kept by a cache under every policy, through crashes as well."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import Cache
from aiovblk.storage.cache import Policy
from aiovblk.testing import Medium, check_block_device

SIZE = 4 << 20
LINE = 4 * 4096


@dataclass
class Bench:
    """A cache over a medium, and perhaps in one."""

    policy: Policy
    lines: int
    store: Medium | None
    inner: Medium = field(default_factory=lambda: Medium(SIZE, seed=1))

    def open(self) -> BlockDevice:
        return Cache(
            self.inner.open(),
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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lines", [1, 24, 1000])
@pytest.mark.parametrize("where", ["memory", "store"])
@pytest.mark.parametrize("policy", ["read", "write-through", "write-back"])
@pytest.mark.deadline(60)
async def test_cache_keeps_the_contract(policy: Policy, where: str, lines: int, seed: int) -> None:
    store = Medium(12 * 4096 + lines * LINE, seed=2) if where == "store" else None
    bench = Bench(policy, lines, store)
    await check_block_device(bench.open, crash=bench.crash, seed=seed, rounds=60)
