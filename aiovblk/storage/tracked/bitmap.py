"""The bitmap of the present interval: in memory, and with each change in the page cache."""

from __future__ import annotations

from .bits import all_set, with_bits
from .file import BitmapFile
from .header import STRIPE

_FEW = 64  # bytes of a bitmap, for 2 MiB of blocks of 4096
_BYTES = [bytes((value,)) for value in range(256)]


class Bitmap:
    """A bitmap in memory and in a slot of the file.

    A bit is written to the file before it is set in memory. So what is set in memory outlives the
    process, and after a write to the file that failed, the next try writes again.

    Args:
        file: that has it.
        slot: where.
        bits: what the slot holds.

    """

    def __init__(self, file: BitmapFile, slot: int, bits: bytearray) -> None:
        self._file = file
        self._write_few = file.writer_of_few(slot)
        self.slot = slot
        self.bits = bits
        self.is_empty = not any(bits)

    def has(self, first: int, last: int) -> bool:
        """Return whether all bits of a range are set; those beyond the end are not."""
        if last >> 3 >= len(self.bits):
            return False
        if first == last:
            return bool(self.bits[first >> 3] >> (first & 7) & 1)
        return all_set(self.bits, first, last)

    def set(self, first: int, last: int) -> None:
        """Set the bits of a range.

        Raises:
            OSError: the file cannot be written; then they are not set.

        """
        begin, end = first >> 3, (last >> 3) + 1
        if first == last:
            byte = self.bits[begin] | 1 << (first & 7)
            self._write_few(begin, _BYTES[byte])
            self.bits[begin] = byte
        else:
            changed = with_bits(self.bits[begin:end], first - begin * 8, last - begin * 8)
            if end - begin <= _FEW and begin // STRIPE == (end - 1) // STRIPE:
                self._write_few(begin, bytes(changed))
            else:
                self._file.write(self.slot, begin, changed)
            self.bits[begin:end] = changed
        self.is_empty = False

    def extend(self, length: int) -> None:
        """Have at least so many bytes, the new ones zero, as in the file."""
        self.bits.extend(bytes(max(0, length - len(self.bits))))
