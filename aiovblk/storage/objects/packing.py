"""What is sealed of a record or a state: a line of JSON, and behind it numbers of 64 bits."""

from __future__ import annotations

import json
import sys
from array import array
from typing import Any

_MAX_LINE = 16 << 20


def to_line(fields: dict[str, Any]) -> bytes:
    """Return the line."""
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def split(data: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Return what the line says, and what is behind it."""
    line, _, _ = bytes(data[:_MAX_LINE]).partition(b"\n")
    return json.loads(line), data[len(line) + 1 :]


def to_bytes(numbers: array[int]) -> bytes:
    """Return numbers as they are stored, little-endian."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def from_bytes(data: memoryview) -> array[int]:
    """Return the numbers that are stored so."""
    numbers = array("Q")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
