"""What may be read in a world: of each block what was flushed last, or was written later.

The size of the disk is one place more behind the blocks. Blocks beyond it are zeroes: a shrink
writes zeroes to what it cuts off.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BLOCK, CHUNK, CHUNKS = 512, 4096, 6
SIZE = CHUNKS * CHUNK
BLOCKS = SIZE // BLOCK
EMPTY = [*[0] * BLOCKS, SIZE]
"""The state of a new disk: the stamp of each block, zeroes beyond its end, and its size."""


class WrongError(AssertionError):
    """Something was read that must not be there."""


def block_of(stamp: int) -> bytes:
    """Return a block that is full of a stamp; 0 is zeroes."""
    return stamp.to_bytes(8, "little") * (BLOCK // 8)


def stamps_of(data: bytes) -> list[int]:
    """Return the stamps of some blocks."""
    found = []
    for block in range(len(data) // BLOCK):
        content = data[block * BLOCK : (block + 1) * BLOCK]
        stamp = int.from_bytes(content[:8], "little")
        if content != block_of(stamp):
            raise WrongError(f"block {block} of these is torn")
        found.append(stamp)
    return found


@dataclass
class Model:
    """What each block may hold: what was written to it since the state that is known."""

    written: list[list[int]] = field(default_factory=lambda: [[stamp] for stamp in EMPTY])
    returned: list[int] = field(default_factory=lambda: [0] * len(EMPTY))
    """Of each block the place in ``written`` of the last write that has returned."""
    durable: list[int] = field(default_factory=lambda: [0] * len(EMPTY))
    """Of each block the place in ``written`` of what was flushed last."""
    generations: list[list[int]] | None = None
    """All states, in order, if only one of these may be found."""
    generation: int = 0
    """The last one that was flushed."""

    def now(self) -> list[int]:
        return [each[-1] for each in self.written]

    def write(self, block: int, stamp: int) -> None:
        self.written[block].append(stamp)

    def resize(self, blocks: int) -> None:
        """Change the size, which takes effect at once."""
        self.write(BLOCKS, blocks * BLOCK)
        for block in range(blocks, BLOCKS):
            self.write(block, 0)
        for place in range(blocks, len(EMPTY)):
            self.returned[place] = len(self.written[place]) - 1

    def end_generation(self) -> None:
        if self.generations is not None:
            self.generations.append(self.now())

    def flushed(self, places: list[int], generation: int) -> None:
        self.durable = [max(pair) for pair in zip(self.durable, places, strict=True)]
        self.generation = max(self.generation, generation)

    def begin(self) -> Window:
        return Window(self, self.written, list(self.durable), self.generation)

    def restart(self, found: list[int]) -> None:
        self.written = [[stamp] for stamp in found]
        self.returned, self.durable = [0] * len(EMPTY), [0] * len(EMPTY)
        if self.generations is not None:
            self.generations, self.generation = [found], 0


@dataclass
class Window:
    """What a state may be that was made between two moments."""

    model: Model
    written: list[list[int]]
    durable: list[int]
    generation: int
    allowed: list[list[int]] = field(default_factory=list)
    generations: list[list[int]] | None = None

    @property
    def is_known(self) -> bool:
        """Whether there was the same writer all the time, which the model has followed."""
        return self.model.written is self.written

    def end(self) -> Window:
        pairs = zip(self.written, self.durable, strict=True)
        self.allowed = [written[first:] for written, first in pairs]
        if self.model.generations is not None:
            self.generations = [list(each) for each in self.model.generations[self.generation :]]
        return self

    def verify(self, found: list[int], what: str) -> None:
        for block, stamp in enumerate(found):
            if stamp not in self.allowed[block]:
                raise WrongError(f"{what}: block {block} is {stamp}, not {self.allowed[block]}")
        if self.generations is not None and found not in self.generations:
            raise WrongError(f"{what}: {found} is no generation")
