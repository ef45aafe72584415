"""Slots on a block device, and a table of them that survives a restart.

    | header | table: the number of the line in each slot, plus one; 0 if none | slots ... |

The header says whether the table is right. It is, from when the cache was closed in order until it
is opened again: then the header is made to say "open", durably, before anything else happens.
Whatever ends the process, the system or the store's medium after that, what it left is worthless.

That is more than the end of the process alone would call for. But to trust a table that was in use
is to rely on each of its changes having reached the store, in order; then a store that failed for a
while, or was mounted anew after an error, would bring back what was overwritten since. By the same
token there are no checksums of the lines: what was closed in order had been made durable.
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

logger = logging.getLogger("aiovblk")

_UNIT = 4096
"""What the header takes, and the table a multiple of."""

_PIECE = 1 << 20
"""Bytes of the table to read or write at once."""

_ENTRY = struct.Struct("<Q")


class DeviceSlots:
    """Slots on a device.

    Args:
        device: where they are.
        size: bytes of it to use.
        line_size: bytes of a slot.

    Attributes:
        device: the same.
        slots: how many there are.
        is_blank: whether :meth:`open` has found that it never held a cache.

    """

    def __init__(self, device: BlockDevice, size: int, line_size: int) -> None:
        self.device = device
        self._unit = max(_UNIT, device.block_size)
        # Each slot takes its entry, and rounding up the table a unit at most.
        self.slots = max(size - 2 * self._unit, 0) // (line_size + _ENTRY.size)
        self._table_size = -(-self.slots * _ENTRY.size // self._unit) * self._unit
        self._base = self._unit + self._table_size
        self.is_blank = False

    async def open(self, header: CacheHeader) -> Iterable[tuple[int, int]]:
        """Read which line is in which slot, and mark the store as in use, durably.

        Returns:
            Slot and number of each line that is there.

        Raises:
            OSError: the store has failed; with EEXIST, it holds something that is no cache.

        """
        lines = await self._read_lines(header)
        await self._write_header(header)
        return lines

    async def close(self, header: CacheHeader, lines: Iterable[tuple[int, int]]) -> None:
        """Write which line is in which slot, and then, durably, that this is right."""
        table = bytearray(self._table_size)
        for slot, number in lines:
            _ENTRY.pack_into(table, slot * _ENTRY.size, number + 1)
        view = memoryview(table)
        for begin in range(0, len(view), _PIECE):
            await self.device.write(self._unit + begin, view[begin : begin + _PIECE])
        await self.device.flush()
        await self._write_header(header._replace(state=CLEAN, table=crc32(table)))

    async def read(self, begin: int, length: int) -> bytes | bytearray | memoryview:
        """Read from a slot; ``begin`` is counted from the first."""
        return await self.device.read(self._base + begin, length)

    async def write(self, begin: int, data: memoryview) -> None:
        """Write to a slot; ``begin`` is counted from the first."""
        await self.device.write(self._base + begin, data)

    async def _write_header(self, header: CacheHeader) -> None:
        data = header.serialize().ljust(self._unit, b"\0")
        await self.device.write(0, memoryview(data))
        await self.device.flush()

    async def _read_lines(self, expected: CacheHeader) -> Iterable[tuple[int, int]]:
        data = bytes(await self.device.read(0, self._unit))
        self.is_blank = not any(data)
        if self.is_blank:
            return []
        if not data.startswith(MAGIC):
            raise OSError(errno.EEXIST, "the store holds something that is no cache; clear it")
        found = CacheHeader.parse(data[:SIZE])
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
        while len(table) < self._table_size:
            length = min(self._table_size - len(table), _PIECE)
            table += await self.device.read(self._unit + len(table), length)
        return table


def _entries(table: bytearray) -> Iterator[tuple[int, int]]:
    return ((slot, entry - 1) for slot, (entry,) in enumerate(_ENTRY.iter_unpack(table)) if entry)


MAGIC = b"aiovblk\x00"
OPEN, CLEAN = 0, 1

# In the order of the attributes of Header, after the magic; then the checksum of all that.
_FIELDS = struct.Struct("<8sII4Q32sI")
_CHECKSUM = struct.Struct("<I")

SIZE = _FIELDS.size + _CHECKSUM.size


class CacheHeader(NamedTuple):
    """The contents of a store's header.

    Attributes:
        version: of the format.
        state: ``OPEN`` or ``CLEAN``.
        line_size: bytes.
        slots: how many there are.
        size: of the inner device, in bytes.
        block_size: of the inner device, in bytes.
        identity: a hash of what the user calls the inner device, or what that holds.
        table: the checksum of the table.

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
        """The header of a store in use."""
        digest = hashlib.sha256(identity.encode()).digest()
        return cls(1, OPEN, line_size, slots, inner.size, inner.block_size, digest, 0)

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Read a header, if it is whole."""
        fields = data[: _FIELDS.size]
        if _CHECKSUM.unpack_from(data, _FIELDS.size) != (crc32(fields),):
            return None
        return cls(*_FIELDS.unpack(fields)[1:])

    def serialize(self) -> bytes:
        """The opposite of :meth:`parse`."""
        fields = _FIELDS.pack(MAGIC, *self)
        return fields + _CHECKSUM.pack(crc32(fields))

    def mismatch_reason(self, expected: Self) -> str | None:
        """What keeps the cache from being used where this header is expected, if anything does."""
        if self._replace(state=OPEN, table=0) != expected:
            return "it is not of what this device holds, or has other lines"
        if self.state != CLEAN:
            return "it was not closed in order"
        return None
