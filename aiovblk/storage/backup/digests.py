"""Digests of a raw image: SHA-256 of each MiB, so that what is restored is what was backed up."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise

from ...aio.gather import run_bounded
from ...contract import check_extents
from ...device import BlockDevice, Extent
from ..extents import MAX_EXTENTS
from ..layer import Layer
from .moving import Advance

PIECE = 1 << 20
"""Bytes of one digest."""

_LENGTH = hashlib.sha256().digest_size
_ZEROES = bytes(_LENGTH)
_REQUESTS = 8  # pieces that are read at the same time
_SAMPLES = 8  # pieces that tell an image from another one


class Digests:
    """The digests of the pieces of an image; that of a piece of zeroes is zeroes.

    Args:
        size: bytes of the image.
        table: a digest for each piece.

    """

    def __init__(self, size: int, table: bytearray | None = None) -> None:
        self.size = size
        self.count = -(-size // PIECE)
        self._table = bytearray(self.count * _LENGTH) if table is None else table

    def encode(self) -> bytes:
        """Encode them, in order."""
        return bytes(self._table)

    @classmethod
    def decode(cls, data: bytes, size: int) -> Digests:
        """Decode what :meth:`encode` has made.

        Raises:
            ValueError: it has another length.

        """
        digests = cls(size)
        if len(data) != len(digests._table):
            raise ValueError(f"{len(data)} bytes are not the digests of {size}")
        digests._table[:] = data
        return digests

    def copy(self) -> Digests:
        """Return an independent copy."""
        return Digests(self.size, self._table[:])

    def is_zero(self, number: int) -> bool:
        """Whether a piece is zeroes."""
        return self._of(number) == _ZEROES

    def sample(self) -> list[int]:
        """Return the numbers of a few pieces that are not zeroes, from all over the image."""
        bounds = [self.count * part // _SAMPLES for part in range(_SAMPLES + 1)]
        parts = (range(*each) for each in pairwise(bounds))
        firsts = (next((each for each in part if not self.is_zero(each)), None) for part in parts)
        return [each for each in firsts if each is not None]

    def matches(self, number: int, data: bytes) -> bool:
        """Whether a piece is what it was."""
        return _digest(data) == self._of(number)

    def range_of(self, number: int) -> tuple[int, int]:
        """Return offset and length of a piece."""
        offset = number * PIECE
        return offset, min(PIECE, self.size - offset)

    async def take(self, image: BlockDevice, numbers: Iterable[int]) -> None:
        """Take the digests of pieces as an image has them now."""

        async def piece(number: int) -> None:
            data = bytes(await image.read(*self.range_of(number)))
            digest = await asyncio.to_thread(_digest, data)
            self._table[number * _LENGTH : (number + 1) * _LENGTH] = digest

        await run_bounded((partial(piece, each) for each in numbers), limit=_REQUESTS)

    def _of(self, number: int) -> bytes:
        return bytes(self._table[number * _LENGTH : (number + 1) * _LENGTH])


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest() if any(data) else _ZEROES


def pieces_of(ranges: Iterable[tuple[int, int]]) -> list[int]:
    """Return the numbers of the pieces that ranges, begin and end, are in; ascending."""
    numbers = {
        number
        for begin, end in ranges
        if begin < end
        for number in range(begin // PIECE, (end - 1) // PIECE + 1)
    }
    return sorted(numbers)


async def data_in(image: BlockDevice, size: int) -> list[tuple[int, int]]:
    """Return the ranges of an image that are not known to be zeroes: begin and end."""
    found = []
    position = 0
    while position < size:
        for length, _, zero in check_extents(await image.extents(position, size - position)):
            end = min(position + length, size)
            if not zero:
                found.append((position, end))
            position = end
            if position >= size:
                break
    return found


class VerifiedImage(Layer):
    """A raw image that is read by whole pieces, each of which is verified.

    Args:
        inner: the image; it may be larger.
        digests: of the image.

    """

    def __init__(self, inner: BlockDevice, digests: Digests) -> None:
        super().__init__(inner)
        self._digests = digests
        self._blocks: int = digests.size // inner.block_size
        self.read_only = True

    @property
    def blocks(self) -> int:
        """Those that have digests."""
        return self._blocks

    async def read(self, offset: int, length: int) -> bytes:
        """Read whole pieces, and verify them.

        Raises:
            OSError: (EIO) a piece is not what it was.

        """
        first = offset // PIECE
        parts = [await self.piece(number) for number in pieces_of([(offset, offset + length)])]
        start = offset - first * PIECE
        return b"".join(parts)[start : start + length]

    async def piece(self, number: int) -> bytes:
        """Read one piece, and verify it."""
        offset, length = self._digests.range_of(number)
        data = bytes(await self.inner.read(offset, length))
        if not await asyncio.to_thread(self._digests.matches, number, data):
            raise OSError(errno.EIO, f"the bytes from {offset} to {offset + length} are damaged")
        return data

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return what the digests say: a hole of the image may be damage."""
        extents: list[Extent] = []
        for number in pieces_of([(offset, offset + length)]):
            begin, size = self._digests.range_of(number)
            part = min(begin + size, offset + length) - max(begin, offset)
            zero = self._digests.is_zero(number)
            if extents and extents[-1].zero == zero:
                part += extents.pop().length
            elif len(extents) == MAX_EXTENTS:
                break
            extents.append(Extent(part, zero, zero))
        return extents


async def verify_pieces(
    image: VerifiedImage, numbers: Iterable[int], advance: Advance
) -> list[str]:
    """Read pieces, and return a line for each that cannot be read or is not what it was."""
    problems: list[tuple[int, str]] = []

    async def piece(number: int) -> None:
        try:
            data = await image.piece(number)
        except OSError as exc:
            problems.append((number, exc.strerror or str(exc)))
        else:
            advance(len(data))

    await run_bounded((partial(piece, each) for each in numbers), limit=_REQUESTS)
    return [problem for _, problem in sorted(problems)]


async def check_pieces(image: VerifiedImage, numbers: Iterable[int]) -> None:
    """Read pieces of the newest backup.

    Raises:
        OSError: (EIO) one cannot be read, or is not what it was.

    """
    problems = await verify_pieces(image, numbers, lambda count: None)
    if problems:
        raise OSError(
            errno.EIO,
            f"the target is not, or no longer, the backup that was made: {problems[0]};"
            " begin a new one elsewhere",
        )
