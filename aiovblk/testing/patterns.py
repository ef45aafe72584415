"""Make and read data patterns: each block is stamped with its write and its own number."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

_STAMP = struct.Struct(">QQ")

SCRIBBLE_BYTE = 0xDB
"""The byte that overwrites ``data`` once :meth:`write` has returned."""


def stamped(write: int, block: int, block_size: int) -> bytes:
    """Return the contents that a write gives a block.

    Args:
        write: the number of the write, at least 1.
        block: the number of the block.
        block_size: bytes. A block below 16 bytes has no readable stamp, but nearly always other
            contents than any other.

    """
    stamp = _STAMP.pack(write, block)
    if block_size < _STAMP.size:
        return hashlib.blake2b(stamp, digest_size=block_size).digest()
    return stamp * (block_size // _STAMP.size) + stamp[: block_size % _STAMP.size]


def stamps_in(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield write and block of each stamp in a block, in order; repeated stamps are left out."""
    last = None
    for stamp in _STAMP.iter_unpack(data[: len(data) // _STAMP.size * _STAMP.size]):
        if stamp != last:
            yield stamp
        last = stamp
