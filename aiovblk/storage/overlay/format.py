"""The layout of the diff of an overlay on its device, format 1.

=========  =======================  =================================================
offset     bytes                    contents
=========  =======================  =================================================
0          one page                 header: the 512 bytes of ``_HEADER``, then zeroes
one page   one per block,           map: where the contents of each block are
           up to a whole page       (see ``blockmap``)
``data``   ``size``                 blocks, each as far behind ``data`` as it is from
                                    the beginning of the overlay
=========  =======================  =================================================

A page has 4096 bytes, or ``block_size`` if that is more. ``data`` is the first multiple of 1 MiB
behind the map. Numbers are little-endian.

The map takes a byte per block, not two bits: so a page of it is the same in memory and in the
diff, ranges are set and searched as slices, and 10 GiB of 4096-byte blocks cost 2.5 MiB at most,
and only for what was written. It needs no checksum and no journal: before and after a page of it is
written, each of its bytes is a state that was true, and durable, at that time. So any mixture of
old and new bytes is valid after a crash.

The header is written on its own, lies within one sector, and never changes together with the map.
"""

from __future__ import annotations

import errno
import struct
import zlib
from dataclasses import dataclass
from typing import Self

from ...arguments import check_count
from ...device import BlockDevice
from ..ranges import round_up

PAGE = 4096
"""Bytes of the smallest page."""

# Large requests to the data are then aligned like those to the overlay, whatever the size of the
# stripes or objects that the diff is made of.
_ALIGNMENT = 1 << 20

_MAGIC = b"aiovblk overlay\n"
_VERSION = 1
_HEADER = struct.Struct("<16sIIQQ468s")  # magic, version, block_size, size, base_size, identity
_CHECKSUM = struct.Struct("<I")  # CRC-32 of these 508 bytes
_MAX_IDENTITY = 468


@dataclass(frozen=True, slots=True)
class DiffHeader:
    """The geometry of an overlay, from which the layout of its diff follows.

    Args:
        block_size: bytes of a block of the overlay.
        size: bytes of the overlay.
        base_size: bytes of the base that show through, from its beginning; zeroes follow.
        identity: of the base, as given when the diff was made; may be empty.

    """

    block_size: int
    size: int
    base_size: int
    identity: str = ""

    @classmethod
    def over(
        cls,
        base: BlockDevice,
        *,
        block_size: int,
        size: int | None = None,
        identity: str | None = None,
    ) -> Self:
        """Make the header of an overlay over ``base``.

        Raises:
            TypeError, ValueError: a size is no multiple of ``block_size``, or ``identity`` is too
                long.

        """
        check_count("size", size, minimum=0)
        size = base.size if size is None else size
        base_size = min(size, base.size)
        for what, value in (("the overlay", size), ("the base", base_size)):
            if value % block_size:
                raise ValueError(
                    f"{what} has {value} bytes, no multiple of {block_size}: both base and diff"
                    " need blocks of a size that divides it (block_size=)"
                )
        if size < block_size:
            raise ValueError(f"an overlay has at least {block_size} bytes, not {size}")
        _check_identity(identity or "")
        return cls(block_size, size, base_size, identity or "")

    @property
    def page(self) -> int:
        """Bytes of a page, and the offset of the map."""
        return max(PAGE, self.block_size)

    @property
    def map_size(self) -> int:
        """Bytes of the map."""
        return round_up(self.size // self.block_size, self.page)

    @property
    def data(self) -> int:
        """The offset of the first block, in bytes."""
        return round_up(self.page + self.map_size, _ALIGNMENT)

    @property
    def end(self) -> int:
        """Bytes that the device of the diff must have."""
        return self.data + self.size

    def check_base(self, base: BlockDevice) -> None:
        """Refuse a base over which the overlay would not read as before.

        Raises:
            ValueError: the base is too small, or has larger blocks.

        """
        if base.size < self.base_size:
            raise ValueError(
                f"the base has {base.size} bytes, but {self.base_size} of it show through the"
                " overlay: it has shrunk, or is another one"
            )
        if base.block_size > self.block_size:
            raise ValueError(
                f"the base has blocks of {base.block_size} bytes, the overlay of {self.block_size}:"
                f" open the base with block_size={self.block_size}"
            )

    def serialize(self) -> bytes:
        """Return the first page of the diff."""
        head = _HEADER.pack(
            _MAGIC, _VERSION, self.block_size, self.size, self.base_size, self.identity.encode()
        )
        return (head + _CHECKSUM.pack(zlib.crc32(head))).ljust(self.page, b"\0")

    @classmethod
    def parse(cls, page: bytes | bytearray | memoryview) -> Self:
        """Parse what :meth:`serialize` returned.

        Raises:
            ValueError: the page is not that of a diff, or of another format.
            OSError: the header is damaged (EIO).

        """
        head = bytes(page[: _HEADER.size])
        magic, version, block_size, size, base_size, identity = _HEADER.unpack(head)
        if not any(head):
            raise ValueError(
                "it begins with zeroes, and is no diff yet: Overlay.create() makes it one;"
                " Overlay.file() (--overlay) does so with a file that is missing or empty"
            )
        if magic != _MAGIC:
            raise ValueError("this is not the diff of an overlay: it begins with something else")
        if version != _VERSION:
            raise ValueError(
                f"the diff has format {version}; this version of aiovblk knows {_VERSION} only"
            )
        (checksum,) = _CHECKSUM.unpack_from(page, _HEADER.size)
        if checksum != zlib.crc32(head) or not _is_possible(block_size, size, base_size):
            raise OSError(errno.EIO, "the header of the diff is damaged; nothing was changed")
        return cls(block_size, size, base_size, identity.rstrip(b"\0").decode())


def _is_possible(block_size: int, size: int, base_size: int) -> bool:
    return block_size.bit_count() == 1 and size % block_size == base_size % block_size == 0 < size


def _check_identity(identity: str) -> None:
    if len(identity.encode()) > _MAX_IDENTITY or "\0" in identity:
        raise ValueError(
            f"an identity is at most {_MAX_IDENTITY} bytes of UTF-8 and has no NUL,"
            f" unlike {identity!r}"
        )
