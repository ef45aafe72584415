"""The layers of dirty chunks over a disk as it is stored, and the memory that they take.

1. dirty: what was written since the last flush began;
2. frozen: what the flush that runs is about. A write to it begins a new dirty chunk above;
3. storing: a chunk of which all is dirty, while it is stored. It is frozen likewise.

Of one chunk there may be one in each layer; what is in an upper one is newer.
"""

from __future__ import annotations

from .client import Buffer
from .dirty_chunk import DirtyChunk
from .frames import Contents
from .manifest import Manifest


class DirtyLayers:
    """The dirty chunks of a disk, by index, in three layers.

    Args:
        manifest: of the disk.

    """

    def __init__(self, manifest: Manifest) -> None:
        self._chunk_size = manifest.chunk_size
        self._block_size = manifest.block_size
        self.dirty: dict[int, DirtyChunk] = {}
        self.frozen: dict[int, DirtyChunk] = {}
        self.storing: dict[int, DirtyChunk] = {}
        self.held = 0
        """Bytes of memory of all."""

    def is_clean(self, index: int) -> bool:
        """Whether no layer has anything of a chunk."""
        return not (index in self.dirty or index in self.frozen or index in self.storing)

    def over(self, index: int) -> list[DirtyChunk]:
        """Return what is over the stored chunk, uppermost first."""
        found = (self.dirty.get(index), self.frozen.get(index), self.storing.get(index))
        return [layer for layer in found if layer is not None]

    def lay_over(self, index: int, start: int, below: Buffer) -> Buffer:
        """Return bytes of a chunk with what is dirty over them."""
        assembled = bytearray(below)
        for layer in reversed(self.over(index)):
            layer.apply_to(assembled, start)
        return memoryview(assembled).toreadonly()

    def write(self, index: int, start: int, data: Buffer) -> bool:
        """Write whole blocks; return whether that has made a dirty chunk complete."""
        dirty = self._dirty_chunk(index)
        was_complete, before = dirty.is_complete, dirty.memory
        dirty.write(start, data)
        self.held += dirty.memory - before
        return dirty.is_complete and not was_complete

    def zero(self, index: int, start: int, length: int) -> None:
        """Write zeroes to whole blocks."""
        dirty = self._dirty_chunk(index)
        before = dirty.memory
        dirty.zero(start, length)
        self.held += dirty.memory - before

    def _dirty_chunk(self, index: int) -> DirtyChunk:
        dirty = self.dirty.get(index)
        if dirty is None:
            dirty = self.dirty[index] = DirtyChunk(self._chunk_size, self._block_size)
        return dirty

    def drop(self, index: int) -> None:
        """Forget a chunk, unless it is being stored: then it is zeroes above that."""
        for layer in (self.dirty.pop(index, None), self.frozen.pop(index, None)):
            if layer is not None:
                self.held -= layer.memory
        if index in self.storing:
            self.zero(index, 0, self._chunk_size)

    def cut_off(self, count: int) -> None:
        """Forget all chunks but the first ``count``, as :meth:`drop` does."""
        for index in {*self.dirty, *self.frozen, *self.storing}:
            if index >= count:
                self.drop(index)

    # Flushes

    def freeze(self) -> None:
        """Freeze all that is dirty."""
        self.thaw()  # of a flush that was cancelled
        self.frozen, self.dirty = self.dirty, {}

    def thaw(self) -> None:
        """Make dirty again what is frozen; what was written since stays over it."""
        frozen, self.frozen = self.frozen, {}
        for index, older in frozen.items():
            self._merge_below(self.dirty, index, older)

    def unfreeze(self, index: int, frozen: DirtyChunk) -> None:
        """Remove what was stored from what is frozen, unless it was dropped."""
        if self.frozen.get(index) is frozen:
            del self.frozen[index]
            self.held -= frozen.memory

    def take_frozen(self) -> dict[int, DirtyChunk]:
        """Return what is frozen, and hold it no longer."""
        frozen, self.frozen = self.frozen, {}
        self.held -= sum(dirty.memory for dirty in frozen.values())
        return frozen

    def complete(self, dirty: DirtyChunk, below: Contents) -> None:
        """Fill the clean blocks of a frozen chunk from the chunk as it is stored."""
        before = dirty.memory
        dirty.complete(below)
        self.held += dirty.memory - before

    def begin_storing(self, index: int) -> None:
        """Move a dirty chunk to those that are being stored."""
        self.storing[index] = self.dirty.pop(index)

    def end_storing(self, index: int, *, stored: bool) -> None:
        """Remove a chunk that was stored, or make it dirty again, below what is newer."""
        dirty = self.storing.pop(index)
        if stored:
            self.held -= dirty.memory
        else:  # what is frozen was written after it
            self._merge_below(self.frozen if index in self.frozen else self.dirty, index, dirty)

    def _merge_below(self, layer: dict[int, DirtyChunk], index: int, older: DirtyChunk) -> None:
        newer = layer.get(index)
        if newer is None:
            layer[index] = older
            return
        before = newer.memory + older.memory
        newer.merge(older)
        self.held += newer.memory - before
