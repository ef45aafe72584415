"""The child processes of a test: none is left when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest


def children(process: int | str = "self") -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update(map(int, task.read_text().split()))
    return found


@pytest.fixture
def no_child_is_left() -> Iterator[None]:
    """A test leaves no process, whatever earlier ones have left, and not even a zombie."""
    before = children()
    yield
    assert not children() - before
