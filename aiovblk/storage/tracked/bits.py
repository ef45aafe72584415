"""Bits of a bytearray, the lowest bit of a byte first: setting, testing and finding ranges."""

from __future__ import annotations

from collections.abc import Iterator

from ..bitset import runs

_CHUNK = 4096  # bytes that become one int: its shifts copy it


def with_bits(held: bytes | bytearray, first: int, last: int) -> bytearray:
    """Return the bytes ``held`` with the bits ``first`` to ``last`` set."""
    begin, end = first >> 3, last >> 3
    found = bytearray(held)
    head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (last & 7))
    if begin == end:
        found[begin] |= head & tail
        return found
    found[begin] |= head
    found[end] |= tail
    found[begin + 1 : end] = b"\xff" * (end - begin - 1)
    return found


def all_set(bits: bytearray, first: int, last: int) -> bool:
    """Return whether the bits ``first`` to ``last`` are all set."""
    begin, end = first >> 3, last >> 3
    head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (last & 7))
    if begin == end:
        return bits[begin] & head & tail == head & tail
    middle = end - begin - 1
    return (
        bits[begin] & head == head
        and bits[end] & tail == tail
        and bits.count(0xFF, begin + 1, end) == middle
    )


def merge_into(target: bytearray, other: bytes | bytearray) -> None:
    """Set the bits in ``target`` that are set in ``other``, which is as long."""
    for begin in range(0, len(target), _CHUNK):
        piece = other[begin : begin + _CHUNK]
        if piece.count(0) == len(piece):
            continue
        held = target[begin : begin + _CHUNK]
        union = int.from_bytes(held, "little") | int.from_bytes(piece, "little")
        target[begin : begin + _CHUNK] = union.to_bytes(len(held), "little")


def count_set(bits: bytes | bytearray) -> int:
    """Return how many bits are set."""
    return int.from_bytes(bits, "little").bit_count()


def set_runs(bits: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield the runs of bits that are set: the first of each, and the one after it."""
    begin = end = 0  # of the run that may go on in the next chunk
    for at in range(0, len(bits), _CHUNK):
        for first, behind in runs(int.from_bytes(bits[at : at + _CHUNK], "little")):
            if at * 8 + first != end:
                if begin < end:
                    yield begin, end
                begin = at * 8 + first
            end = at * 8 + behind
    if begin < end:
        yield begin, end
