"""Sizes, as people write and read them."""

from __future__ import annotations

import re
from fractions import Fraction

from ..errors import Error

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


class SpecError(Error):
    """A SPEC does not lead to a device; the message says why."""


def parse_size(text: str) -> int:
    """Bytes from ``512``, ``64M``, ``1.5G``; units are powers of 1024.

    Raises:
        SpecError: not a size, or not a whole number of bytes.

    """
    pattern = r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(?:iB|B)?"
    match = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
    if match is None:
        raise SpecError(f"{text!r} is no size; write a number of bytes, or one like 64M, 1G, 5T")
    size = Fraction(match[1]) * _UNITS[match[2].upper()]
    if size.denominator != 1:
        raise SpecError(f"{text!r} is no whole number of bytes")
    return int(size)


def in_units(size: float) -> str:
    """Bytes for people."""
    units = iter("BKMGTPE")
    unit = next(units)
    while size >= 1024:
        size, unit = size / 1024, next(units)
    return f"{size:.4g}{unit}"
