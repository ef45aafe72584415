"""How much a test does: little every day, and a lot with ``--long``."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")

is_long = False
"""Whether ``--long`` was given; set before the tests are imported."""


def by_size(usual: T, long: T) -> T:
    """Choose between a number for every day, and one for those who have time."""
    return long if is_long else usual
