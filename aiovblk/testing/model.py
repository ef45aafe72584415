"""Model what each block of a device may hold now, and after a crash.

A block may show a change (a write, zeroes, a trim) from when the change began. The rules:

* A change that succeeded hides, from reads that begin later, all changes that had returned before
  it began. Changes that were in flight at the same time do not hide each other: any may be the
  last.
* What was read, and belongs to no change in flight, stays: it hides all else that the block might
  have held.
* A change that failed or was cancelled may show or not. It may also take effect late, until
  something else is written or the device is opened again.
* A hidden change may come back after a crash, until a flush succeeds that began after it was
  hidden.
* Blocks are atomic: one change or the other. Only a read during a write may find parts of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from .patterns import SCRIBBLE_BYTE, stamps_in
from .results import CheckFailed

Content = Callable[[int], bytes | None]
"""Returns what a change puts into the block of this number; None if that may be anything."""


@dataclass(slots=True, eq=False)
class Change:
    """What a request writes to some blocks, or what they held when the disk was opened."""

    number: int
    blocks: range
    content: Content
    what: str
    """The request, as text."""
    began: float
    returned: float = inf
    settled: bool = False
    """Whether it has succeeded, or dates from before the device was opened."""

    def __str__(self) -> str:
        """Describe what it was and how it ended."""
        if self.settled:
            return self.what
        return f"{self.what} (in flight)" if self.returned == inf else f"{self.what} (failed)"


@dataclass(slots=True, eq=False)
class _BlockVersion:
    """A change, in one block."""

    change: Change
    hidden: float = inf
    """The moment from which reads that begin do not see it."""
    erased: bool = False
    """Whether it cannot come back after a crash, either."""


class Model:
    """The contents of some blocks of a device.

    Args:
        block_size: bytes.
        write_through: whether writes are durable when they return.

    """

    def __init__(self, block_size: int, *, write_through: bool) -> None:
        self._block_size = block_size
        self._write_through = write_through
        self._zeroes = bytes(block_size)
        self._blocks: dict[int, list[_BlockVersion]] = {}
        self._changes: dict[int, Change] = {}
        self._readings: list[Change] = []
        self._clock = 0

    def now(self) -> int:
        """Return a moment later than all before: the model's own clock."""
        self._clock += 1
        return self._clock

    def load(self, first: int, data: bytes) -> None:
        """Load the contents that the disk holds at first, from block ``first`` on."""
        blocks = range(first, first + len(data) // self._block_size)

        def content(block: int) -> bytes:
            begin = (block - first) * self._block_size
            return data[begin : begin + self._block_size]

        reading = self.begin(blocks, content, "what it held at first")
        self.end(reading, succeeded=True)
        self._readings.append(reading)

    def begin(self, blocks: range, content: Content, what: str) -> Change:
        """Begin a change."""
        change = Change(self.next_number, blocks, content, what, self.now())
        self._changes[change.number] = change
        for block in blocks:
            self._blocks.setdefault(block, []).append(_BlockVersion(change))
        return change

    @property
    def next_number(self) -> int:
        """The number of the next change to begin; unique."""
        return len(self._changes) + 1

    def end(self, change: Change, *, succeeded: bool) -> None:
        """End a change: its handler has returned."""
        now = change.returned = self.now()
        change.settled = succeeded
        if not succeeded:
            return
        for block in change.blocks:
            for held in self._blocks[block]:
                if held.change.returned < change.began:
                    held.hidden = min(held.hidden, now)

    def flush(self, began: float) -> None:
        """Note that a flush that began at ``began`` has succeeded."""
        for several in self._blocks.values():
            for held in several:
                if held.hidden < began:
                    held.erased = True

    def forget_hidden(self) -> None:
        """Drop the versions that cannot be seen any more. No request may be in flight."""
        for block, several in self._blocks.items():
            self._blocks[block] = [held for held in several if not self._is_gone(held)]

    def restart(self) -> None:
        """Note that the device was opened again, after a crash or after flush and unmount."""
        self.forget_hidden()
        now = self.now()
        for several in self._blocks.values():
            for held in several:
                held.hidden = inf
                held.change.settled = True
                held.change.returned = min(held.change.returned, now)

    def _is_gone(self, held: _BlockVersion) -> bool:
        return held.erased or (self._write_through and held.hidden < inf)

    def check_read(self, began: float, first: int, data: bytes) -> None:
        """Check what a read that began at ``began`` returned, from block ``first`` on.

        Raises:
            CheckFailed: a block does not hold what it should.

        """
        now, size = self.now(), self._block_size
        for block in range(first, first + len(data) // size):
            begin = (block - first) * size
            self._check_block(began, now, block, data[begin : begin + size])

    def check_zeroes(self, began: float, blocks: range) -> None:
        """Check that blocks which were said to be zeroes may be; see :meth:`check_read`."""
        now = self.now()
        for block in blocks:
            self._check_block(began, now, block, self._zeroes)

    def _check_block(self, began: float, now: float, block: int, found: bytes) -> None:
        allowed = [held for held in self._blocks[block] if held.hidden > began]
        contents = [held.change.content(block) for held in allowed]
        if len(allowed) == 1 and contents[0] == found:  # the usual case, and the fast one
            return
        if found not in contents:
            if None not in contents and not _is_mixture(found, contents, allowed, began):
                raise CheckFailed(self._deviation(block, found, allowed))
            return
        shown, others = _split(allowed, block, found)
        if all(_is_past(held, began) for held in shown):
            for held in others:
                if _is_past(held, began):
                    held.hidden = now

    # Descriptions of what was wrong

    def _deviation(self, block: int, found: bytes, allowed: list[_BlockVersion]) -> str:
        expected = " or ".join(str(held.change) for held in allowed)
        return (
            f"block {block} (offset {block * self._block_size}) holds {self._describe(found)},"
            f" instead of {expected}"
        )

    def _describe(self, found: bytes) -> str:
        if found == self._zeroes:
            return "zeroes"
        if found == bytes([SCRIBBLE_BYTE]) * len(found):
            return "what overwrote `data` after write had returned"
        stamps = list(dict.fromkeys(self._describe_stamps(found)))
        if any(stamp != "zeroes" for stamp in stamps):
            return " and ".join(stamps[:4])
        for reading in self._readings:
            for block in reading.blocks:
                if reading.content(block) == found:
                    return f"what block {block} held at first"
        return f"garbage ({found[:16].hex(' ')} ...)"

    def _describe_stamps(self, found: bytes) -> Iterator[str]:
        for number, block in stamps_in(found):
            change = self._changes.get(number)
            if number == block == 0:
                yield "zeroes"
            elif change and block in change.blocks:
                yield f"block {block} of {change}"


def _split(
    allowed: list[_BlockVersion], block: int, found: bytes
) -> tuple[list[_BlockVersion], list[_BlockVersion]]:
    """Split the versions into those that may be what was found, and the others."""
    shown: list[_BlockVersion] = []
    others: list[_BlockVersion] = []
    for held in allowed:
        (shown if held.change.content(block) in (None, found) else others).append(held)
    return shown, others


def _is_past(held: _BlockVersion, began: float) -> bool:
    return held.change.settled and held.change.returned < began


def _is_mixture(
    found: bytes, contents: list[bytes | None], allowed: list[_BlockVersion], began: float
) -> bool:
    """Whether a read during a write found a mixture of both, as while memory is being copied."""
    if all(_is_past(held, began) for held in allowed):
        return False
    known = [content for content in contents if content is not None]
    return all(byte in several for byte, *several in zip(found, *known, strict=True))
