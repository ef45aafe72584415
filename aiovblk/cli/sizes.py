"""Parse and format sizes: ``64M``, ``1.5G``."""

from __future__ import annotations

import re
from fractions import Fraction

from .errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}

MAX_SIZE = 2**63 - 1
"""Bytes: the largest signed 64-bit number, the limit of files, disks and the NBD specification."""

_MAX_TEXT = 40
"""Characters of a size. int() refuses thousands of digits with a message of its own."""


def parse_size(text: str) -> int:
    """Parse ``512``, ``64M`` or ``1.5G`` into bytes; units are powers of 1024.

    Raises:
        UsageError: it is no size, not a whole number of bytes, or more than :data:`MAX_SIZE`.

    """
    pattern = r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(?:iB|B)?"
    match = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
    if match is None or len(text) > _MAX_TEXT:
        shown = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
        raise UsageError(f"{shown!r} is no size; write a number of bytes, or one like 64M, 1G, 5T")
    size = Fraction(match[1]) * _UNITS[match[2].upper()]
    if size.denominator != 1:
        raise UsageError(f"{text!r} is no whole number of bytes")
    if size > MAX_SIZE:
        raise UsageError(f"{text!r} is more than a disk can have, {MAX_SIZE} bytes")
    return int(size)


def format_size(size: float) -> str:
    """Format bytes with a unit and four digits, such as ``1.5G``."""
    units = iter("BKMGTPE")
    unit = next(units)
    while size >= 1024:
        size, unit = size / 1024, next(units)
    return f"{size:.4g}{unit}"
