"""Arithmetic on ranges of bytes: rounding, and splitting into pieces of bounded length."""

from __future__ import annotations

from collections.abc import Iterator


def round_down(offset: int, unit: int) -> int:
    """Return the largest multiple of ``unit`` that is not above ``offset``."""
    return offset // unit * unit


def round_up(offset: int, unit: int) -> int:
    """Return the smallest multiple of ``unit`` that is not below ``offset``."""
    return -(-offset // unit) * unit


def split_range(begin: int, end: int, limit: int) -> Iterator[tuple[int, int]]:
    """Split the bytes from ``begin`` to ``end`` into pieces of at most ``limit`` bytes.

    Returns:
        Offset and length of each piece, in ascending order. All but the last have ``limit`` bytes.

    """
    return ((start, min(limit, end - start)) for start in range(begin, end, limit))
