"""Slots for cached lines on a block device (the store), with a table that survives a restart.

    | header | table: the number of the line in each slot, plus one; 0 if none | slots ... |

The header says whether the table is valid. It is valid from when the cache was closed cleanly until
it is opened again: then the header is first set to "open", durably. Whatever ends the process, the
system or the store's medium after that, the contents are dropped at the next start.

This drops more than the end of the process alone would require. But to trust a table that was in
use is to rely on each of its changes having reached the store, in order. A store that failed for a
while, or was mounted again after an error, would then bring back what was overwritten since. For
the same reason there are no checksums of the lines: what was closed cleanly had been made durable.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self
from zlib import crc32

from ...device import BlockDevice
from ..ranges import round_up, split_range

logger = logging.getLogger("aiovblk")

CACHE_MAGIC = b"aiovblk\x00"

OPEN, CLEAN = 0, 1
"""States of a store: in use, and closed cleanly."""

_VERSION = 1

# In the order of the attributes of CacheHeader, after the magic; then the checksum of all that.
_FIELDS = struct.Struct("<8sII4Q32sI")
_CHECKSUM = struct.Struct("<I")

CACHE_HEADER_SIZE = _FIELDS.size + _CHECKSUM.size

_UNIT = 4096
"""Bytes that the header takes, and that the table is a multiple of."""

_TABLE_REQUEST = 1 << 20
"""Bytes of the table to read or write at once."""

_ENTRY = struct.Struct("<Q")


class CacheHeader(NamedTuple):
    """The contents of a store's header.

    Attributes:
        version: of the format.
        state: ``OPEN`` or ``CLEAN``.
        line_size: bytes.
        slots: the number of slots.
        size: bytes of the inner device.
        block_size: bytes, of the inner device.
        identity: a hash of the user's identity of the inner device or its contents.
        table: the checksum (CRC-32) of the table.

    """

    version: int
    state: int
    line_size: int
    slots: int
    size: int
    block_size: int
    identity: bytes
    table: int

    @classmethod
    def of(cls, inner: BlockDevice, identity: str, line_size: int, slots: int) -> Self:
        """Make the header of a store in use."""
        digest = hashlib.sha256(identity.encode()).digest()
        return cls(_VERSION, OPEN, line_size, slots, inner.size, inner.block_size, digest, 0)

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Parse a header; return None if its checksum is wrong."""
        fields = data[: _FIELDS.size]
        if _CHECKSUM.unpack_from(data, _FIELDS.size) != (crc32(fields),):
            return None
        return cls(*_FIELDS.unpack(fields)[1:])

    def serialize(self) -> bytes:
        """Return the bytes that :meth:`parse` reads."""
        fields = _FIELDS.pack(CACHE_MAGIC, *self)
        return fields + _CHECKSUM.pack(crc32(fields))

    def mismatch_reason(self, expected: Self) -> str | None:
        """Return why a store with this header cannot be used; None if it can.

        Args:
            expected: the header of a store in use for this inner device and these options.

        """
        if self._replace(state=OPEN, table=0) != expected:
            return "it is not of what this device holds, or has other lines"
        if self.state != CLEAN:
            return "it was not closed cleanly"
        return None


class DeviceSlots:
    """Slots on a block device.

    Args:
        device: the store.
        size: bytes of it to use.
        line_size: bytes of a slot.

    Attributes:
        device: the store.
        slots: the number of slots.
        is_blank: whether :meth:`open` has found that the store never held a cache.

    """

    def __init__(self, device: BlockDevice, size: int, line_size: int) -> None:
        self.device = device
        self._unit = max(_UNIT, device.block_size)
        # Each slot takes an entry of the table too. The header takes one unit, and rounding up the
        # table at most another.
        self.slots = max(size - 2 * self._unit, 0) // (line_size + _ENTRY.size)
        self._table_size = round_up(self.slots * _ENTRY.size, self._unit)
        self._base = self._unit + self._table_size
        self.is_blank = False

    async def open(self, header: CacheHeader) -> Iterable[tuple[int, int]]:
        """Read which line is in which slot, and mark the store as in use, durably.

        Args:
            header: of the store in use; with another one its contents are dropped.

        Returns:
            Slot and number of each cached line.

        Raises:
            OSError: the store has failed; with EEXIST, it holds something other than a cache.

        """
        lines = await self._read_lines(header)
        await self._write_header(header)
        return lines

    async def close(self, header: CacheHeader, lines: Iterable[tuple[int, int]]) -> None:
        """Write which line is in which slot, and then, durably, that the table is valid.

        Raises:
            OSError: the store has failed, and remains marked as in use.

        """
        table = bytearray(self._table_size)
        for slot, number in lines:
            _ENTRY.pack_into(table, slot * _ENTRY.size, number + 1)
        view = memoryview(table)
        for begin, length in split_range(0, len(view), _TABLE_REQUEST):
            await self.device.write(self._unit + begin, view[begin : begin + length])
        await self.device.flush()
        await self._write_header(header._replace(state=CLEAN, table=crc32(table)))

    async def read(self, begin: int, length: int) -> bytes | bytearray | memoryview:
        """Read from a slot; ``begin`` is the offset in bytes from the first slot."""
        return await self.device.read(self._base + begin, length)

    async def write(self, begin: int, data: memoryview) -> None:
        """Write to a slot; ``begin`` is the offset in bytes from the first slot."""
        await self.device.write(self._base + begin, data)

    async def _write_header(self, header: CacheHeader) -> None:
        """Write the header durably."""
        data = header.serialize().ljust(self._unit, b"\0")
        await self.device.write(0, memoryview(data))
        await self.device.flush()

    async def _read_lines(self, expected: CacheHeader) -> Iterable[tuple[int, int]]:
        """Return the lines of the table; none, with a warning, if it cannot be used."""
        data = bytes(await self.device.read(0, self._unit))
        self.is_blank = not any(data)
        if self.is_blank:
            return []
        if not data.startswith(CACHE_MAGIC):
            raise OSError(
                errno.EEXIST, "the store holds something that is no cache: clear it, or use another"
            )
        found = CacheHeader.parse(data[:CACHE_HEADER_SIZE])
        reason = found.mismatch_reason(expected) if found else "its header is damaged"
        if found and not reason:
            table = await self._read_table()
            if crc32(table) == found.table:
                return _entries(table)
            reason = "its table is damaged"
        logger.warning("what was cached is dropped: %s", reason)
        return []

    async def _read_table(self) -> bytearray:
        table = bytearray()
        for begin, length in split_range(0, self._table_size, _TABLE_REQUEST):
            table += await self.device.read(self._unit + begin, length)
        return table


def _entries(table: bytearray) -> Iterator[tuple[int, int]]:
    """Yield slot and number of each line in a table."""
    return ((slot, entry - 1) for slot, (entry,) in enumerate(_ENTRY.iter_unpack(table)) if entry)
