"""The block map of an overlay: whether each block is in the base, in the diff, or zeroes."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from ..sparse_memory import map_sparse

BASE = 0
"""In the base: the block was never written. A hole in the map of the diff means this."""
DATA = 1
"""In the diff."""
ZERO = 2
"""Zeroes, which are stored nowhere."""

_STATES = bytes([BASE, DATA, ZERO])
_RUN = re.compile(rb"\x00+|\x01+|\x02+")

_MAX_WRITE = 1 << 20
"""Bytes of the map to write at once."""

Pages = list[tuple[int, bytes]]
"""Parts of the map: the offset in the map, and the contents, both of whole pages."""


class BlockMap:
    """The block map in memory, and which pages of it have changed (dirty pages).

    Offsets are bytes of the overlay, multiples of the block size, unless they are said to be in the
    map. The map has one byte per block; its memory is allocated where a state other than BASE is
    set.

    Args:
        block_size: bytes of a block.
        size: bytes of the map, whole pages.
        page: bytes of a page.

    """

    def __init__(self, block_size: int, size: int, page: int) -> None:
        self._shift = block_size.bit_length() - 1
        self._page = page
        self._map = map_sparse(size)
        self._changed: set[int] = set()
        self._reserved: set[int] = set()

    @property
    def is_changed(self) -> bool:
        """Whether a page has changed since the last :meth:`take_changed`."""
        return bool(self._changed)

    def run(self, offset: int, end: int) -> tuple[int, int]:
        """Return the state of the block at ``offset``, and where the run of this state ends.

        Blocks at or behind ``end`` are not looked at.
        """
        shift = self._shift
        first = offset >> shift
        match = _RUN.match(self._map, first, end >> shift)
        assert match  # the range is not empty, and load() accepts these states only
        return self._map[first], match.end() << shift

    def mark(self, offset: int, end: int, state: int) -> None:
        """Set the state of these blocks."""
        if self.run(offset, end) == (state, end):
            return  # the usual case: a block is overwritten, and the map does not change
        first, last = offset >> self._shift, end >> self._shift
        self._map[first:last] = bytes([state]) * (last - first)
        self._changed.update(self._pages(offset, end))

    def unreserved(self, offset: int, end: int) -> list[int]:
        """Return the pages of these blocks that the diff has not allocated, as offsets in it."""
        pages = self._pages(offset, end)
        return [page * self._page for page in pages if page not in self._reserved]

    def reserve(self, page: int) -> None:
        """Record that the diff has allocated the page at this offset in the map."""
        self._reserved.add(page // self._page)

    def _pages(self, offset: int, end: int) -> range:
        """Return the numbers of the pages that these blocks are in."""
        first, last = offset >> self._shift, end >> self._shift
        return range(first // self._page, (last - 1) // self._page + 1)

    def load(self, pages: Pages) -> None:
        """Set parts of the map as they were read from the diff.

        The pages that are not zeroes are allocated there.

        Raises:
            OSError: a byte is no state (EIO).

        """
        for offset, page in pages:
            if page.translate(None, _STATES):
                raise OSError(errno.EIO, f"the map of the diff is damaged at its byte {offset}")
            self._map[offset : offset + len(page)] = page
            for at in range(0, len(page), self._page):
                if any(page[at : at + self._page]):
                    self.reserve(offset + at)

    def take_changed(self) -> Pages:
        """Return copies of the pages that have changed since the last call; join adjacent ones."""
        changed, self._changed = self._changed, set()
        unit = self._page
        return [
            (first * unit, self._map[first * unit : last * unit])
            for first, last in _runs(changed, _MAX_WRITE // unit)
        ]

    def put_back(self, pages: Pages) -> None:
        """Mark these pages as changed again, because they could not be written."""
        for offset, page in pages:
            first = offset // self._page
            self._changed.update(range(first, first + len(page) // self._page))


def _runs(numbers: Iterable[int], longest: int) -> Iterator[tuple[int, int]]:
    """Coalesce numbers into runs of consecutive ones, cut at multiples of ``longest``.

    Yields:
        The first number of each run, and the one after its last.

    """

    def key(item: tuple[int, int]) -> tuple[int, int]:
        at, number = item
        return number - at, number // longest

    for _, group in groupby(enumerate(sorted(numbers)), key):
        run = [number for _, number in group]
        yield run[0], run[-1] + 1
