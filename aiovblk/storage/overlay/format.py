"""What the diff of an overlay looks like, format 1.

=========  =======================  =================================================
offset     bytes                    contents
=========  =======================  =================================================
0          one page                 header: the 512 bytes of ``_HEADER``, then zeroes
one page   one for each block,      map: where the contents of each block are
           up to a whole page       (see ``states``)
``data``   ``size``                 blocks, each as far behind ``data`` as it is from
                                    the beginning of the overlay
=========  =======================  =================================================

A page has 4096 bytes, or ``block_size`` if that is more. ``data`` is the first multiple of 1 MiB
behind the map. Numbers are little-endian.

The map takes a byte for a block, not two bits: so a page of it is the same in memory and in the
diff, ranges are marked and found by slices, and 10 GiB of 4096-byte blocks cost 2.5 MiB at most,
only for what was written. It needs no checksum and no journal. Before and after a block of it is
written, each of its bytes is a state that was true, and durable, at that time; so any mixture of
old and new bytes will do.

The header is written by itself, is within one sector, and never changes together with the map.
"""

from __future__ import annotations

import errno
import struct
import zlib
from dataclasses import dataclass
from typing import Self

from ...arguments import check_count
from ...device import BlockDevice

PAGE = 4096
"""Bytes of the smallest page."""

# So that large requests to the data are aligned as those to the overlay are, whatever stripes or
# objects the diff is made of.
_ALIGNMENT = 1 << 20

_MAGIC = b"aiovblk overlay\n"
_VERSION = 1
_HEADER = struct.Struct("<16sIIQQ468s")  # magic, version, block_size, size, shown, identity
_CHECKSUM = struct.Struct("<I")  # CRC-32 of these 508 bytes
_MAX_IDENTITY = 468


@dataclass(frozen=True, slots=True)
class DiffHeader:
    """The geometry of an overlay, and of the diff that follows from it.

    Args:
        block_size: bytes of a block of the overlay.
        size: bytes of the overlay.
        base_size: bytes of the base that show through, from its beginning; zeroes follow.
        identity: what the base is, in the words of whoever made the diff; may be empty.

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
        """The header of an overlay over ``base``.

        Raises:
            TypeError, ValueError: a number of bytes is no multiple of ``block_size``, or
                ``identity`` does not fit.

        """
        check_count("size", size, minimum=0)
        size = base.size if size is None else size
        shown = min(size, base.size)
        for what, value in (("the overlay", size), ("the base", shown)):
            if value % block_size:
                raise ValueError(
                    f"{what} has {value} bytes, no multiple of {block_size}: both base and diff"
                    " need blocks of a size that divides it (block_size=)"
                )
        if size < block_size:
            raise ValueError(f"an overlay has at least {block_size} bytes, not {size}")
        _check_identity(identity or "")
        return cls(block_size, size, shown, identity or "")

    @property
    def page(self) -> int:
        """Bytes of a page; the map begins here."""
        return max(PAGE, self.block_size)

    @property
    def map_size(self) -> int:
        """Bytes of the map."""
        return _round_up(self.size // self.block_size, self.page)

    @property
    def data(self) -> int:
        """Where the blocks begin."""
        return _round_up(self.page + self.map_size, _ALIGNMENT)

    @property
    def end(self) -> int:
        """Bytes that the diff must have."""
        return self.data + self.size

    def check_base(self, base: BlockDevice) -> None:
        """Refuse a base over which the overlay would not be what it was.

        Raises:
            ValueError: it is too small, or has larger blocks.

        """
        if base.size < self.base_size:
            raise ValueError(
                f"the base has {base.size} bytes, but {self.base_size} of it show through the overlay:"
                " it has shrunk, or is another one"
            )
        if base.block_size > self.block_size:
            raise ValueError(
                f"the base has blocks of {base.block_size} bytes, the overlay of {self.block_size}:"
                f" open the base with block_size={self.block_size}"
            )

    def serialize(self) -> bytes:
        """The first page of the diff."""
        head = _HEADER.pack(
            _MAGIC, _VERSION, self.block_size, self.size, self.base_size, self.identity.encode()
        )
        return (head + _CHECKSUM.pack(zlib.crc32(head))).ljust(self.page, b"\0")

    @classmethod
    def parse(cls, page: bytes | bytearray | memoryview) -> Self:
        """Read what :meth:`serialize` made.

        Raises:
            ValueError: this is no diff, or one of another format.
            OSError: it is damaged (EIO).

        """
        head = bytes(page[: _HEADER.size])
        magic, version, block_size, size, shown, identity = _HEADER.unpack(head)
        if not any(head):
            raise ValueError(
                "it begins with zeroes, and is no diff yet; Overlay.create() makes it one, and"
                " Overlay.file() (--overlay) a file that is not there"
            )
        if magic != _MAGIC:
            raise ValueError("this is not the diff of an overlay: it begins with something else")
        if version != _VERSION:
            raise ValueError(
                f"the diff has format {version}; this version of aiovblk knows {_VERSION} only"
            )
        (checksum,) = _CHECKSUM.unpack_from(page, _HEADER.size)
        if checksum != zlib.crc32(head) or not _is_possible(block_size, size, shown):
            raise OSError(errno.EIO, "the header of the diff is damaged; it was left as it is")
        return cls(block_size, size, shown, identity.rstrip(b"\0").decode())


def _is_possible(block_size: int, size: int, base_size: int) -> bool:
    return block_size.bit_count() == 1 and size % block_size == base_size % block_size == 0 < size


def _check_identity(identity: str) -> None:
    if len(identity.encode()) > _MAX_IDENTITY or "\0" in identity:
        raise ValueError(
            f"an identity is at most {_MAX_IDENTITY} bytes of UTF-8 and has no NUL,"
            f" unlike {identity!r}"
        )


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
