"""Choose the blocks that requests use, so that requests often overlap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

MAX_BLOCKS = 2048
MAX_BYTES = 4 * 1024 * 1024
"""The size up to which all of a device is used."""

_WIDE = 256  # blocks of the largest window of a larger device
_NARROW = 64  # of the others
_NARROW_BYTES = 256 * 1024
_MIDDLES = 4  # windows that are neither at the beginning nor at the end


class Regions:
    """The blocks of a device that a check uses.

    All of a small device; of a large one its first and last blocks, and some around multiples of
    large powers of two, where the chunks meet that it may be stored in.

    Args:
        block_size: bytes.
        blocks: the size of the device.
        random: chooses the blocks.

    Attributes:
        windows: separate runs of blocks, in order.

    """

    def __init__(self, block_size: int, blocks: int, random: Random) -> None:
        self.windows = [range(blocks)]
        if blocks > min(MAX_BLOCKS, MAX_BYTES // block_size):
            narrow = max(min(_NARROW, _NARROW_BYTES // block_size), 4)
            wide = narrow * _WIDE // _NARROW
            middles = [_around(_boundary(blocks, random), narrow) for _ in range(_MIDDLES)]
            middles.append(_around(_boundary(blocks, random), wide))
            several = [range(narrow), range(blocks - narrow, blocks), *middles]
            self.windows = merged(
                range(max(each.start, 0), min(each.stop, blocks)) for each in several
            )

    def pick(self, random: Random, taken: Sequence[range]) -> range:
        """Choose a run of blocks, often one that touches or overlaps another.

        Args:
            random: chooses.
            taken: the runs of other requests.

        """
        if taken and random.random() < 0.65:
            return self._beside(random, random.choice(taken))
        window = random.choice(self.windows)
        size = len(window)
        length = random.choice([1, 1, random.randint(1, 8), random.randint(1, size), size])
        length = min(length, size)
        last = window.stop - length
        start = random.choice([window.start, last, *[random.randint(window.start, last)] * 4])
        return range(start, start + length)

    def _beside(self, random: Random, other: range) -> range:
        window = next(each for each in self.windows if other.start in each)
        length = random.choice([1, 2, len(other), random.randint(1, 8)])
        edges = [other.start, other.stop]
        start = random.choice([*edges, *edges, *(edge - length for edge in edges), edges[0] + 1])
        start = max(window.start, min(start, window.stop - 1))
        return range(start, min(start + length, window.stop))


def _boundary(blocks: int, random: Random) -> int:
    """Choose a block whose number is a multiple of a large power of two."""
    power = random.randint(min(6, blocks.bit_length() - 2), blocks.bit_length() - 2)
    return random.randint(1, (blocks - 1) >> power) << power


def _around(block: int, length: int) -> range:
    return range(block - length // 2, block - length // 2 + length)


def merged(ranges: Iterable[range]) -> list[range]:
    """Merge ranges that touch or overlap; return them in order."""
    runs: list[range] = []
    for each in sorted(ranges, key=lambda each: each.start):
        if runs and each.start <= runs[-1].stop:
            runs[-1] = range(runs[-1].start, max(runs[-1].stop, each.stop))
        else:
            runs.append(each)
    return runs
