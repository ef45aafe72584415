"""Copies of what handlers return: they stay as they are, and their memory is used again."""

from __future__ import annotations

import pytest

from aiovblk.dispatch.copies import BUFFER_SIZE, SMALLEST_SHARED, Copies


@pytest.mark.parametrize(
    "length", [1, SMALLEST_SHARED - 1, SMALLEST_SHARED, BUFFER_SIZE, BUFFER_SIZE + 1]
)
def test_copy_does_not_change_with_what_was_copied(length: int) -> None:
    memory = bytearray(b"a" * length)
    copy = Copies().copy(memoryview(memory))
    memory[:] = bytes(length)
    assert bytes(copy) == b"a" * length


@pytest.mark.parametrize("length", [SMALLEST_SHARED, 100_000, BUFFER_SIZE])
def test_copies_that_are_in_use_stay_as_they_are(length: int) -> None:
    copies = Copies()
    held = [copies.copy(memoryview(bytearray([i]) * length)) for i in range(100)]
    assert [bytes(each) for each in held] == [bytes([i]) * length for i in range(100)]


def test_memory_of_copies_that_were_let_go_is_used_again() -> None:
    copies = Copies()
    view = memoryview(bytearray(SMALLEST_SHARED))
    seen: dict[int, object] = {}  # they stay alive here, so that no identity comes twice
    for _ in range(10 * BUFFER_SIZE // SMALLEST_SHARED):
        copy = copies.copy(view)
        assert isinstance(copy, memoryview)
        seen[id(copy.obj)] = copy.obj
    assert len(seen) == 2  # one more, as a copy is made while the last one is held


def test_part_that_is_held_keeps_its_buffer_from_being_used() -> None:
    copies = Copies()
    first = copies.copy(memoryview(bytearray(b"x" * SMALLEST_SHARED)))
    for _ in range(10 * BUFFER_SIZE // SMALLEST_SHARED):
        copies.copy(memoryview(bytearray(SMALLEST_SHARED)))
    assert bytes(first) == b"x" * SMALLEST_SHARED
