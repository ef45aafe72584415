"""The child processes of a test: none is left when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


def children() -> set[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


@pytest.fixture
def no_child_is_left() -> Iterator[None]:
    """A test leaves no process, whatever earlier ones have left, and not even a zombie."""
    before = children()
    yield
    assert not children() - before
