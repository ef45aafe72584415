"""Two states of a disk are compared by where their blocks are."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import pytest

from aiovblk.storage.objects.comparing import Compared, Comparison, Places
from aiovblk.storage.objects.extents import ZEROES, ExtentMap, Placed, Run
from aiovblk.storage.objects.keys import ORIGIN_STEP

BLOCK, PER_CHUNK = 512, 8
A, B, SEGMENT, OTHER = 11, 12, 21, 22


def places(
    entries: Iterable[int],
    *placed: Placed,
    size: int | None = None,
    origins: list[int] | None = None,
) -> Places:
    extents = ExtentMap()
    extents.lay(placed, {SEGMENT: 64, OTHER: 64})
    chunks = array("Q", entries)
    return Places(chunks, extents, len(chunks) * PER_CHUNK if size is None else size, origins)


def compare(old: Places, new: Places) -> list[tuple[int, Compared]]:
    """Return the changed ranges: first block, and the rest; of all, that they are in order."""
    comparison = Comparison(old, new, BLOCK, PER_CHUNK * BLOCK)
    found, block = [], 0
    for each in comparison.walk(0, new.size * BLOCK):
        assert each.length > 0
        blocks = each.length // BLOCK
        if each.changed:
            found.append((block, each._replace(length=blocks)))
        block += blocks
    assert block == new.size
    return found


def changed(blocks: int, *, zero: bool = False, by_chunk: bool = False) -> Compared:
    return Compared(blocks, True, zero, by_chunk)


def test_chunk_with_the_same_entry_is_equal() -> None:
    assert compare(places([0, A, B]), places([0, A, B])) == []


def test_chunk_with_another_entry_is_changed_as_a_whole() -> None:
    old, new = places([0, A, A]), places([A, B, 0])
    assert compare(old, new) == [
        (0, changed(8, by_chunk=True)),
        (8, changed(8, by_chunk=True)),
        (16, changed(8, zero=True, by_chunk=True)),
    ]


def test_blocks_of_a_segment_are_equal_in_the_same_place_only() -> None:
    old = places([A], (0, Run(1, 4, SEGMENT, 10)))
    assert compare(old, places([A], (0, Run(1, 4, SEGMENT, 10)))) == []
    assert compare(old, places([A], (0, Run(2, 2, SEGMENT, 11)), (0, Run(4, 1, SEGMENT, 14)))) == [
        (1, changed(1)),
        (4, changed(1)),
    ]
    assert compare(old, places([A], (0, Run(1, 4, OTHER, 10)))) == [(1, changed(4))]
    assert compare(old, places([A])) == [(1, changed(4))]


def test_run_over_a_new_chunk_is_changed_by_blocks_and_the_rest_as_a_whole() -> None:
    old = places([A], (0, Run(0, 2, SEGMENT, 0)))
    new = places([B], (0, Run(0, 1, SEGMENT, 0)), (0, Run(3, 1, SEGMENT, 9)))
    assert compare(old, new) == [
        (1, changed(1, by_chunk=True)),
        (2, changed(1, by_chunk=True)),
        (3, changed(1)),
        (4, changed(4, by_chunk=True)),
    ]


def test_zeroes_are_equal_wherever_they_come_from() -> None:
    zero = (0, Run(2, 3, ZEROES, 0))
    assert compare(places([0]), places([0], zero)) == []
    assert compare(places([0], zero), places([0])) == []
    assert compare(places([A]), places([A], zero)) == [(2, changed(3, zero=True))]
    assert compare(places([A], zero), places([0])) == [
        (0, changed(2, zero=True, by_chunk=True)),
        (5, changed(3, zero=True, by_chunk=True)),
    ]


def test_data_in_the_states_is_compared() -> None:
    old = places([0], (0, Run(0, 3, bytes(BLOCK) + b"ab" * BLOCK, 0)))
    assert compare(old, places([0], (0, Run(1, 2, b"x" * BLOCK + b"ab" * BLOCK, 1)))) == []
    assert compare(old, places([0], (0, Run(1, 1, b"ba" * BLOCK, 0)))) == [
        (1, changed(1)),
        (2, changed(1, zero=True, by_chunk=False)),
    ]
    assert compare(old, places([0], (0, Run(1, 2, SEGMENT, 0)))) == [(1, changed(2))]


@pytest.mark.parametrize("behind", [0, 3])
def test_what_is_behind_the_end_of_the_earlier_state_counts_as_zeroes(behind: int) -> None:
    old = places([A], size=PER_CHUNK - behind)
    assert compare(old, places([A, 0])) == ([(5, changed(3))] if behind else [])
    zero = (0, Run(PER_CHUNK - behind, behind, ZEROES, 0)) if behind else (0, Run(0, 1, SEGMENT, 0))
    assert compare(old, places([A, B], zero))[-1] == (8, changed(8, by_chunk=True))
    assert compare(places([A, B]), places([A], size=PER_CHUNK - behind)) == []


def test_origins_are_compared_by_the_disk_that_they_are() -> None:
    """Each of two clones numbers the other's disk, or none, as it numbers its own."""
    segment = (2, Run(0, 1, SEGMENT, 0))
    old = places([A, 0, 0], segment)
    inherited = (2, Run(0, 1, SEGMENT + ORIGIN_STEP, 0))
    new = places([A + ORIGIN_STEP, A, 0], inherited, origins=[7, 0])
    assert compare(old, new) == [(8, changed(8, by_chunk=True))]


def test_unchanged_chunks_are_passed_over_many_at_a_time() -> None:
    old, new = places([A] * 5000), places([A] * 4999 + [B])
    found = list(Comparison(old, new, BLOCK, PER_CHUNK * BLOCK).walk(0, new.size * BLOCK))
    assert len(found) == 6
    assert found[-1] == (PER_CHUNK * BLOCK, True, False, True)


def test_a_part_of_the_disk_may_begin_and_end_anywhere() -> None:
    old = places([A, A], (1, Run(1, 2, SEGMENT, 0)))
    comparison = Comparison(old, places([A, A]), BLOCK, PER_CHUNK * BLOCK)
    found = [each[:2] for each in comparison.walk(3 * BLOCK, 10 * BLOCK)]
    assert found == [(5 * BLOCK, False), (BLOCK, False), (BLOCK, True)]
