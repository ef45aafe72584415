"""Extents: runs over chunks, compared with what a list of blocks says."""

from __future__ import annotations

from array import array
from random import Random

import pytest

from aiovblk.storage.objects.extents import (
    ZEROES,
    ExtentMap,
    PackedRuns,
    Placed,
    Run,
    Runs,
    changed_since,
    clip,
    gather,
    pack,
    unpack,
)

BLOCK, BLOCKS, CHUNKS = 16, 24, 3

Place = tuple[object, int] | None


class Model:
    """Where each block is, one by one."""

    def __init__(self) -> None:
        self.blocks: list[list[Place]] = [[None] * BLOCKS for _ in range(CHUNKS)]

    def lay(self, index: int, run: Run) -> None:
        for number in range(run.blocks):
            source: object = run.source if isinstance(run.source, int) else id(run.source)
            at = 0 if run.source == ZEROES else run.position + number
            self.blocks[index][run.first + number] = source, at


def places_of(runs: Runs) -> list[Place]:
    found: list[Place] = [None] * BLOCKS
    last = 0
    for run in runs:
        assert run.blocks > 0
        assert run.first >= last
        last = run.end
        for number in range(run.blocks):
            source: object = run.source if isinstance(run.source, int) else id(run.source)
            at = 0 if run.source == ZEROES else run.position + number
            found[run.first + number] = source, at
    return found


def random_run(random: Random, sources: list[int | bytes]) -> Run:
    first = random.randrange(BLOCKS)
    blocks = random.randint(1, BLOCKS - first)
    source = random.choice(sources)
    return Run(first, blocks, source, 0 if source == ZEROES else random.randrange(100))


@pytest.mark.parametrize("seed", range(30))
def test_runs_are_laid_over_others_block_by_block(seed: int) -> None:
    random = Random(seed)
    sources: list[int | bytes] = [ZEROES, 5, 6, 7, bytes(200 * BLOCK), b"x" * 200 * BLOCK]
    sizes = {5: 500, 6: 600, 7: 700}
    extents, model = ExtentMap(), Model()
    for _ in range(60):
        index = random.randrange(CHUNKS)
        if random.random() < 0.1:
            extents.clear(index)
            model.blocks[index] = [None] * BLOCKS
        else:
            placed = random_runs(random, sources)
            extents.lay(placed, sizes)
            for chunk, run in placed:
                model.lay(chunk, run)
        assert [places_of(extents.runs(each)) for each in range(CHUNKS)] == model.blocks
        assert_counted(extents, sizes)
        assert_counted(extents.copy(), sizes)


def random_runs(random: Random, sources: list[int | bytes]) -> list[Placed]:
    """Return some runs that do not overlap, in any order."""
    placed: list[Placed] = []
    for index in range(CHUNKS):
        first = random.randrange(4)
        while first < BLOCKS and random.random() < 0.6:
            blocks = random.randint(1, min(6, BLOCKS - first))
            source = random.choice(sources)
            position = 0 if source == ZEROES else random.randrange(100)
            placed.append((index, Run(first, blocks, source, position)))
            first += blocks + random.randrange(3)
    random.shuffle(placed)
    return placed


def assert_counted(extents: ExtentMap, sizes: dict[int, int]) -> None:
    runs = [run for _, run in extents]
    assert extents.count == len(runs)
    assert extents.inline == sum(run.blocks for run in runs if not isinstance(run.source, int))
    for source, blocks in sizes.items():
        live = sum(run.blocks for run in runs if run.source == source)
        assert extents.live(source) == live
        assert extents.sizes.get(source) == (blocks if live else None)


def test_segment_is_unused_once_its_last_block_is_covered() -> None:
    extents = ExtentMap()
    extents.lay([(0, Run(0, 4, 5, 0))], {5: 9})
    extents.lay([(0, Run(0, 3, 6, 0))], {6: 3})
    assert extents.unused == []
    extents.lay([(0, Run(3, 1, ZEROES, 0))], {})
    assert extents.unused == [(5, 9)]
    extents.lay([], {7: 1})  # all that was copied into it was written anew meanwhile
    assert extents.unused == [(5, 9), (7, 1)]


def test_runs_that_continue_each_other_are_one() -> None:
    extents = ExtentMap()
    for first in (0, 2, 1, 3):
        extents.lay([(0, Run(first, 1, 5, 10 + first))], {5: 20})
    extents.lay([(0, Run(4, 1, ZEROES, 0)), (0, Run(5, 2, ZEROES, 0))], {})
    assert extents.runs(0) == (Run(0, 4, 5, 10), Run(4, 3, ZEROES, 0))
    assert extents.count == 2


@pytest.mark.parametrize("seed", range(20))
def test_what_has_changed_since_is_found_block_by_block(seed: int) -> None:
    random = Random(seed)
    sources: list[int | bytes] = [ZEROES, 5, bytes(200 * BLOCK)]
    extents = ExtentMap()
    extents.lay([(0, random_run(random, sources)) for _ in range(1)], {5: 500})
    extents.lay([(0, random_run(random, sources))], {5: 500})
    then = extents.runs(0)
    for _ in range(random.randrange(4)):
        extents.lay([(0, random_run(random, sources))], {5: 500})
    now = extents.runs(0)
    before, after = places_of(then), places_of(now)
    expected = [new if new != old else None for old, new in zip(before, after, strict=True)]
    assert places_of(changed_since(now, then)) == expected


def test_clipped_runs_are_within_the_range() -> None:
    runs = (Run(0, 4, 5, 0), Run(6, 2, ZEROES, 0), Run(8, 8, 6, 40))
    assert clip(runs, 2, 10) == [Run(2, 2, 5, 2), Run(6, 2, ZEROES, 0), Run(8, 2, 6, 40)]
    assert clip(runs, 4, 6) == []


@pytest.mark.parametrize("seed", range(10))
def test_runs_are_decoded_as_they_were_encoded(seed: int) -> None:
    random = Random(seed)
    inline = random.randbytes(200 * BLOCK)
    extents = ExtentMap()
    sizes = {5: 500, (3 << 52) + 6: 600}
    extents.lay(random_runs(random, [ZEROES, *sizes, inline]), sizes)
    placed, data = gather(extents, BLOCK)
    packed = pack(placed, sizes)
    found = unpack(packed, memoryview(data), BLOCK)
    assert contents_of(found) == contents_of(list(extents))
    assert dict(packed.sources).items() <= sizes.items()


def contents_of(placed: list[Placed]) -> list[tuple[int, int, int, object]]:
    found: list[tuple[int, int, int, object]] = []
    for index, run in placed:
        where: object = run.source, run.position
        if not isinstance(run.source, int):
            begin = run.position * BLOCK
            where = bytes(run.source[begin : begin + run.blocks * BLOCK])
        found.append((index, run.first, run.blocks, where))
    return found


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (1, 0 << 32 | 4, "outside of its data"),  # a block behind the data
        (2, 2 << 32 | 8, "outside of its data"),  # behind the segment
        (0, 1 << 32, "outside of its data"),  # no blocks
        (1, 3 << 32, "list index"),  # no such segment
    ],
)
def test_impossible_runs_are_refused(first: int, second: int, reason: str) -> None:
    packed = PackedRuns(array("Q", [first, second]), [(5, 9)])
    with pytest.raises((ValueError, IndexError), match=reason):
        unpack(packed, bytes(4 * BLOCK), BLOCK)
