"""Where the contents of each block of an overlay are."""

from __future__ import annotations

import errno
import mmap
import re
from collections.abc import Iterable, Iterator
from itertools import groupby

BASE = 0
"""In the base: nothing was written here. What a hole of the diff reads as."""
DATA = 1
"""In the diff."""
ZERO = 2
"""Nowhere: it reads as zeroes."""

_KNOWN = bytes([BASE, DATA, ZERO])
_RUN = re.compile(rb"\x00+|\x01+|\x02+")

_MAP_NORESERVE = 0x4000  # include/uapi/asm-generic/mman-common.h; Python names it since 3.13

_MAX_WRITE = 1 << 20  # bytes

Pages = list[tuple[int, bytes]]
"""Parts of the map: the offset in it, and the contents, of whole pages."""


class BlockMap:
    """The map of an overlay in memory, and which pages of it were changed.

    Offsets are bytes of the overlay, multiples of the block size.

    A byte for each block, in memory that exists where something other than BASE was put.

    Args:
        block_size: bytes of a block.
        size: bytes of the map, whole pages.
        page: bytes of a page.

    """

    def __init__(self, block_size: int, size: int, page: int) -> None:
        self._shift = block_size.bit_length() - 1
        self._page = page
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map = mmap.mmap(-1, size, flags=flags)
        self._changed: set[int] = set()
        self._reserved: set[int] = set()

    @property
    def is_changed(self) -> bool:
        """Whether :meth:`take_changed` would return anything."""
        return bool(self._changed)

    def run(self, offset: int, end: int) -> tuple[int, int]:
        """The state of the block at ``offset``, and where, up to ``end``, another one begins."""
        shift = self._shift
        first = offset >> shift
        match = _RUN.match(self._map, first, end >> shift)
        assert match  # there is a block, and load() lets only these states pass
        return self._map[first], match.end() << shift

    def mark(self, offset: int, end: int, state: int) -> None:
        """Give these blocks another state."""
        if self.run(offset, end) == (state, end):
            return  # the usual case: a block is written again, and the map stays as it is
        first, last = offset >> self._shift, end >> self._shift
        self._map[first:last] = bytes([state]) * (last - first)
        self._changed.update(self._pages(offset, end))

    def unreserved(self, offset: int, end: int) -> list[int]:
        """The pages of these blocks that the diff may have no room for, as offsets in the map."""
        pages = self._pages(offset, end)
        return [page * self._page for page in pages if page not in self._reserved]

    def reserve(self, page: int) -> None:
        """Take note that the diff has room for the page at this offset in the map."""
        self._reserved.add(page // self._page)

    def _pages(self, offset: int, end: int) -> range:
        first, last = offset >> self._shift, end >> self._shift
        return range(first // self._page, (last - 1) // self._page + 1)

    def load(self, pages: Pages) -> None:
        """Take parts of the map from the diff; which has room for those that are not zeroes.

        Raises:
            OSError: that is no map (EIO).

        """
        for offset, page in pages:
            if page.translate(None, _KNOWN):
                raise OSError(errno.EIO, f"the map of the diff is damaged at its byte {offset}")
            self._map[offset : offset + len(page)] = page
            for at in range(0, len(page), self._page):
                if any(page[at : at + self._page]):
                    self.reserve(offset + at)

    def take_changed(self) -> Pages:
        """What was changed since this was last called, as it is now."""
        changed, self._changed = self._changed, set()
        unit = self._page
        return [
            (first * unit, self._map[first * unit : last * unit])
            for first, last in _runs(changed, _MAX_WRITE // unit)
        ]

    def put_back(self, pages: Pages) -> None:
        """Have :meth:`take_changed` return these pages again, as they are then."""
        for offset, page in pages:
            first = offset // self._page
            self._changed.update(range(first, first + len(page) // self._page))


def _runs(numbers: Iterable[int], longest: int) -> Iterator[tuple[int, int]]:
    """Begin and end of runs of successive numbers."""

    def key(item: tuple[int, int]) -> tuple[int, int]:
        at, number = item
        return number - at, number // longest

    for _, group in groupby(enumerate(sorted(numbers)), key):
        run = [number for _, number in group]
        yield run[0], run[-1] + 1
