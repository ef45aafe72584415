"""Copies of reply payloads do not change, and their buffers are reused."""

from __future__ import annotations

import pytest

from aiovblk.stream.reply_copies import COPY_BUFFER_SIZE, MIN_POOLED_COPY, ReplyCopyBuffer


@pytest.mark.parametrize(
    "length", [1, MIN_POOLED_COPY - 1, MIN_POOLED_COPY, COPY_BUFFER_SIZE, COPY_BUFFER_SIZE + 1]
)
def test_copy_does_not_change_with_what_was_copied(length: int) -> None:
    memory = bytearray(b"a" * length)
    copy = ReplyCopyBuffer().copy(memoryview(memory))
    memory[:] = bytes(length)
    assert bytes(copy) == b"a" * length


@pytest.mark.parametrize("length", [MIN_POOLED_COPY, 100_000, COPY_BUFFER_SIZE])
def test_copies_in_use_do_not_change(length: int) -> None:
    copies = ReplyCopyBuffer()
    held = [copies.copy(memoryview(bytearray([i]) * length)) for i in range(100)]
    assert [bytes(each) for each in held] == [bytes([i]) * length for i in range(100)]


def test_memory_of_released_copies_is_reused() -> None:
    copies = ReplyCopyBuffer()
    view = memoryview(bytearray(MIN_POOLED_COPY))
    seen: dict[int, object] = {}  # they stay alive here, so that no identity comes twice
    for _ in range(10 * COPY_BUFFER_SIZE // MIN_POOLED_COPY):
        copy = copies.copy(view)
        assert isinstance(copy, memoryview)
        seen[id(copy.obj)] = copy.obj
    assert len(seen) == 2  # one more, as a copy is made while the last one is held


def test_view_of_a_part_keeps_its_buffer_from_being_reused() -> None:
    copies = ReplyCopyBuffer()
    first = copies.copy(memoryview(bytearray(b"x" * MIN_POOLED_COPY)))
    for _ in range(10 * COPY_BUFFER_SIZE // MIN_POOLED_COPY):
        copies.copy(memoryview(bytearray(MIN_POOLED_COPY)))
    assert bytes(first) == b"x" * MIN_POOLED_COPY
