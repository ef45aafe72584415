"""An overlay survives a power failure after each single request to base and diff."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import Overlay

from ....support.power_failure import BLOCK, Blocks, Power, VolatileDisk, pattern, survival

pytestmark = pytest.mark.slow

BLOCKS = 10_000  # so that the map has three pages
SIZE = BLOCKS * BLOCK
SHOWN = BLOCKS - 14  # of the base
LOOKED_AT = [*range(24), *range(4090, 4110), *range(BLOCKS - 16, BLOCKS)]
LUCK = range(5)

Step = Callable[["Model"], Awaitable[None]]


def a_base(power: Power | None = None) -> VolatileDisk:
    contents = {number: pattern(number) for number in LOOKED_AT if number < SHOWN}
    return VolatileDisk(SHOWN * BLOCK, power, contents)


class Model:
    """An overlay, and the possible contents of each block after a crash."""

    def __init__(self, overlay: BlockDevice) -> None:
        self.overlay = overlay
        self.now: Blocks = {}
        for number in LOOKED_AT:
            self.now[number] = pattern(number) if number < SHOWN else bytes(BLOCK)
        self.allowed = {number: {block} for number, block in self.now.items()}

    async def write(self, first: int, last: int, version: int) -> None:
        data = b"".join(pattern(number, version) for number in range(first, last))
        self._may_become({number: pattern(number, version) for number in range(first, last)})
        await self.overlay.write(first * BLOCK, memoryview(data))

    async def trim(self, first: int, last: int) -> None:
        self._may_become(dict.fromkeys(range(first, last), bytes(BLOCK)))
        await self.overlay.trim(first * BLOCK, (last - first) * BLOCK)

    async def zero(self, first: int, last: int, *, may_trim: bool) -> None:
        self._may_become(dict.fromkeys(range(first, last), bytes(BLOCK)))
        length = (last - first) * BLOCK
        await self.overlay.write_zeroes(first * BLOCK, length, may_trim=may_trim)

    async def flush(self) -> None:
        await self.overlay.flush()
        self.allowed = {number: {block} for number, block in self.now.items()}

    async def check(self, overlay: BlockDevice) -> None:
        for number in LOOKED_AT:
            block = bytes(await overlay.read(number * BLOCK, BLOCK))
            assert block in self.allowed[number], number

    def _may_become(self, blocks: Blocks) -> None:
        for number, block in blocks.items():
            if number in self.now:
                self.now[number] = block
                self.allowed[number].add(block)


async def work(model: Model) -> None:
    """Make each transition of a block's state, with and without a flush between."""
    await model.write(0, 8, 1)
    await model.write(4095, 4100, 1)  # in two pages of the map
    await model.flush()
    await model.write(4, 12, 2)
    await model.trim(2, 6)
    await model.trim(4098, 4105)
    await model.flush()
    await model.zero(0, 20, may_trim=True)
    await model.write(3, 5, 3)
    await model.trim(BLOCKS - 12, BLOCKS)
    await model.flush()
    await model.write(BLOCKS - 10, BLOCKS, 4)
    await model.zero(4096, 4098, may_trim=False)
    await model.trim(BLOCKS - 6, BLOCKS - 4)
    await model.write(BLOCKS - 5, BLOCKS - 3, 5)
    await model.flush()
    await model.trim(0, 24)
    await model.write(7, 9, 6)


def cuts() -> Iterator[int]:
    """Yield how many requests the power lasts, ever more; the caller stops when all were done."""
    yield from range(1000)


async def a_diff(power: Power | None = None) -> VolatileDisk:
    diff = VolatileDisk(Overlay.diff_size(a_base(), size=SIZE))
    await Overlay.create(a_base(), diff, size=SIZE)
    return diff.after_crash(survival(1), power)


async def test_each_flushed_write_is_there_after_a_crash_anywhere() -> None:
    for cut in cuts():
        diff = await a_diff(Power(cut))
        model = Model(await Overlay.open(a_base(), diff))
        try:
            await work(model)
        except OSError:
            pass
        else:
            assert cut > 25
            break
        for seed in LUCK:
            await model.check(await Overlay.open(a_base(), diff.after_crash(survival(seed))))


async def test_overlay_continues_after_an_error_of_the_diff_anywhere() -> None:
    for cut in cuts():
        diff = await a_diff(Power(cut))
        model = Model(overlay := await Overlay.open(a_base(), diff))
        try:
            await work(model)
        except OSError:
            diff.power.requests += 1000  # one failure only
        else:
            break
        model.now = {at: bytes(await overlay.read(at * BLOCK, BLOCK)) for at in LOOKED_AT}
        await model.check(overlay)
        await model.flush()
        for seed in LUCK:
            await model.check(await Overlay.open(a_base(), diff.after_crash(survival(seed))))


async def test_creation_that_was_interrupted_anywhere_can_be_repeated() -> None:
    for cut in cuts():
        former = {10: b"\1" * BLOCK}  # in the map
        diff = VolatileDisk(Overlay.diff_size(a_base(), size=SIZE), Power(cut), former)
        try:
            await Overlay.create(a_base(), diff, size=SIZE)
        except OSError:
            pass
        else:
            assert cut == 4
            break
        for seed in LUCK:
            found = diff.after_crash(survival(seed))
            try:
                overlay = await Overlay.create(a_base(), found, size=SIZE)
            except FileExistsError:
                overlay = await Overlay.open(a_base(), found)
            await Model(overlay).check(overlay)


async def worked_upon() -> tuple[Model, Blocks]:
    """Return the expected contents of an overlay, and its diff."""
    diff = await a_diff()
    model = Model(await Overlay.open(a_base(), diff))
    await work(model)
    await model.flush()
    return model, diff.durable


@pytest.mark.deadline(120)
async def test_commit_that_was_interrupted_anywhere_can_be_repeated() -> None:
    model, written = await worked_upon()
    size = Overlay.diff_size(a_base(), size=SIZE)
    for cut in cuts():
        power = Power(cut)
        grown = dict.fromkeys(range(SHOWN, BLOCKS), b"grown by" * (BLOCK // 8))
        base = VolatileDisk(SIZE, power, a_base().contents | grown)
        diff = VolatileDisk(size, power, written)
        overlay = await Overlay.open(base, diff)
        try:
            await overlay.commit()
        except OSError:
            await model.check(overlay)
        else:
            break
        for seed in LUCK:
            survives = survival(seed)
            found = base.after_crash(survives)
            overlay = await Overlay.open(found, diff.after_crash(survives))
            await model.check(overlay)
            await overlay.commit()
            await model.check(overlay)
            await model.check(found.after_crash(survival(0)))
    assert cut > 10
    await model.check(overlay)
    await model.check(base)
    await model.check(await Overlay.open(base, diff.after_crash(survival(0))))


@pytest.mark.parametrize("new_blocks", [SHOWN - 2, BLOCKS + 4])
@pytest.mark.deadline(120)
async def test_rebase_that_was_interrupted_anywhere_changes_nothing(new_blocks: int) -> None:
    model, written = await worked_upon()
    contents = {at: pattern(at, at % 3) if at % 4 else bytes(BLOCK) for at in range(BLOCKS + 4)}
    for at in range(24):
        contents[at] = pattern(at)
    new = VolatileDisk(new_blocks * BLOCK, None, {at: contents[at] for at in range(new_blocks)})
    size = Overlay.diff_size(a_base(), size=SIZE)
    for cut in cuts():
        diff = VolatileDisk(size, Power(cut), written)
        overlay = await Overlay.open(a_base(), diff)
        try:
            await overlay.rebase(new, identity="new")
        except OSError:
            await model.check(overlay)
        else:
            break
        for seed in LUCK:
            found = diff.after_crash(survival(seed))
            try:
                overlay = await Overlay.open(a_base(), found, identity="")
            except ValueError:
                overlay = await Overlay.open(new, found, identity="new")
            await model.check(overlay)
    assert cut > 5
    await model.check(overlay)
    await model.check(await Overlay.open(new, diff.after_crash(survival(0)), identity="new"))
