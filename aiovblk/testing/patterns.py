"""What the blocks hold that a check writes: each tells which write put it there, and where."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

_STAMP = struct.Struct(">QQ")

SCRIBBLE_BYTE = 0xDB
"""The byte that ``data`` is overwritten with once :meth:`write` has returned."""


def stamped(write: int, block: int, block_size: int) -> bytes:
    """The contents of a block, of any size, that this write put there.

    Args:
        write: its number, at least one.
        block: where it was to go.
        block_size: bytes. In fewer than 16 no number can be read, but they differ nearly always.

    """
    stamp = _STAMP.pack(write, block)
    if block_size < _STAMP.size:
        return hashlib.blake2b(stamp, digest_size=block_size).digest()
    return stamp * (block_size // _STAMP.size) + stamp[: block_size % _STAMP.size]


def stamps_in(data: bytes) -> Iterator[tuple[int, int]]:
    """Write and block of each stamp of a block, in order, neighbours that are alike left out."""
    last = None
    for stamp in _STAMP.iter_unpack(data[: len(data) // _STAMP.size * _STAMP.size]):
        if stamp != last:
            yield stamp
        last = stamp
