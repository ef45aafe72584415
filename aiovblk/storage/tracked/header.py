"""The header of a bitmap file, format 1, and where everything is in the file.

=========  ==========================  ==================================================
offset     bytes                       contents
=========  ==========================  ==================================================
0          64 KiB                      one copy of the header
64 KiB     64 KiB                      the other one; the higher sequence number is valid
128 KiB    64 KiB * ``SLOTS`` for      stripes: of each slot in turn 64 KiB, then of each
           each stripe                 the next 64 KiB, ...
=========  ==========================  ==================================================

A slot holds the bitmap of an interval: one bit for each ``granularity`` bytes of the device, the
lowest bit of a byte first. Stripes let the device grow without moving anything.

A copy of the header is ``_PREFIX`` and then JSON. It is written in turns with the other: over the
one that need not be intact, since the other is known to be durable. So a power failure while it is
written leaves the other. Bitmaps have no checksums while they are in use; after a clean end the
header has one for each. None is needed before: bits are only set, never cleared, while an interval
lasts, so that any mixture of old and new sectors has no bit that was never true.
"""

from __future__ import annotations

import errno
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from ...errors import StorageError
from ..ranges import round_up

STRIPE = 64 * 1024
"""Bytes of a stripe of a bitmap, and of a copy of the header."""

STRIPE_BITS = STRIPE * 8

SLOTS = 16
"""Bitmaps in a file."""

MAX_BITS = 1 << 30
"""Bits of the largest bitmap, which takes 128 MiB of memory."""

_MAX_REGIONS = 4096
_MAGIC = b"aiovblk bitmaps\n"
_VERSION = 1
_PREFIX = struct.Struct("<16sIIQI")  # magic, version, bytes of JSON, sequence number, CRC-32
_NUMBERS = struct.Struct("<IQ")  # what the checksum covers before the JSON: bytes, sequence number


@dataclass(frozen=True, slots=True)
class Interval:
    """The time from one point to the next, the last one until now, and its bitmap."""

    slot: int
    checksum: int | None = None
    """CRC-32 of the bitmap, up to the device's end; None while it may change."""


@dataclass(frozen=True, slots=True)
class PointRecord:
    """A named point."""

    time: float
    """Seconds since the epoch."""
    interval: int | None
    """The index of the interval that begins there; None if all must count as dirty."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a bitmap file says of itself.

    Attributes:
        size: bytes of the device.
        granularity: bytes for each bit, a power of two.
        region: bytes of a region, a power of two; see ``regions``.
        boot: which run of the machine's kernel wrote it last.
        open: the open regions, as runs: the first of each, and the one after it.
        intervals: from the oldest to the present one; none if nothing has to be recorded.
        points: by name.

    """

    size: int
    granularity: int
    region: int
    boot: str = ""
    open: tuple[tuple[int, int], ...] = ()
    intervals: tuple[Interval, ...] = ()
    points: Mapping[str, PointRecord] = ()  # type: ignore[assignment]  # made one below

    def __post_init__(self) -> None:
        """Make the mapping of points one of its own."""
        object.__setattr__(self, "points", dict(self.points))

    @classmethod
    def of(cls, size: int, granularity: int) -> Self:
        """Make the header of a new file."""
        return cls(size, granularity, region_for(size, granularity))

    @property
    def bits(self) -> int:
        """Bits of a bitmap."""
        return -(-self.size // self.granularity)

    @property
    def regions(self) -> int:
        """How many regions the device has."""
        return -(-self.size // self.region)

    @property
    def bitmap_size(self) -> int:
        """Bytes of a bitmap."""
        return -(-self.bits // 8)

    @property
    def end(self) -> int:
        """Bytes that the file has at least."""
        return stripe_offset(0, round_up(self.bitmap_size, STRIPE) // STRIPE)

    def dump(self, sequence: int) -> bytes:
        """Serialize it."""
        facts = asdict(self)
        text = json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()
        checksum = zlib.crc32(text, zlib.crc32(_NUMBERS.pack(len(text), sequence)))
        found = _PREFIX.pack(_MAGIC, _VERSION, len(text), sequence, checksum) + text
        assert len(found) <= STRIPE, "the points and regions are limited so that they fit"
        return found

    @classmethod
    def load(cls, copy: bytes, path: str) -> tuple[int, Self] | None:
        """Parse a copy of the header.

        Returns:
            Its sequence number and itself; None if it is damaged, or was never written.

        Raises:
            StorageError: another program, or a later version, has written it.

        """
        magic, version, length, sequence, checksum = _PREFIX.unpack_from(copy)
        if magic != _MAGIC:
            return None
        if version != _VERSION:
            raise StorageError(
                errno.EINVAL,
                f"{path} has format {version} of a later version of aiovblk: use that, or another"
                " file",
            )
        text = copy[_PREFIX.size : _PREFIX.size + length]
        if zlib.crc32(text, zlib.crc32(_NUMBERS.pack(length, sequence))) != checksum:
            return None
        return sequence, cls._of_facts(json.loads(text))

    @classmethod
    def _of_facts(cls, facts: dict[str, Any]) -> Self:
        return cls(
            **facts
            | {
                "open": tuple((begin, end) for begin, end in facts["open"]),
                "intervals": tuple(Interval(**each) for each in facts["intervals"]),
                "points": {name: PointRecord(**each) for name, each in facts["points"].items()},
            }
        )


def is_header(copy: bytes) -> bool:
    """Return whether these bytes are, or were, a copy of a header."""
    return copy.startswith(_MAGIC)


def region_for(size: int, granularity: int) -> int:
    """Return the bytes of a region: whole bytes of a bitmap, and at most 4096 of them."""
    least = -(-size // _MAX_REGIONS)
    return max(granularity * 8, 1 << (least - 1).bit_length())


def stripe_offset(slot: int, stripe: int) -> int:
    """Return where a stripe of a slot begins in the file."""
    return (2 + stripe * SLOTS + slot) * STRIPE


def pieces(slot: int, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Split bytes of a bitmap at its stripes.

    Returns:
        Of each piece where it begins in the bitmap, its bytes, and where it is in the file.

    """
    while begin < end:
        stripe, within = divmod(begin, STRIPE)
        length = min(end - begin, STRIPE - within)
        yield begin, length, stripe_offset(slot, stripe) + within
        begin += length
