"""Opening a file of bitmaps: what it says may be believed, after a clean end, a kill, a crash."""

from __future__ import annotations

import errno
import logging
import zlib
from dataclasses import replace

from ...errors import StorageError
from . import points
from .bits import with_bits
from .file import BitmapFile, boot_id
from .header import MAX_BITS, Header, region_for
from .recorder import Recorder

logger = logging.getLogger("aiovblk")


def open_recorder(
    path: str, size: int, *, block_size: int, granularity: int | None, read_only: bool
) -> Recorder:
    """Open or create the file that records the changes of a device.

    Args:
        path: of the file.
        size: bytes of the device.
        block_size: of the device.
        granularity: bytes for each bit; None for what the file has, or ``block_size`` in a new one.
        read_only: whether the device is not written, and neither the file.

    Raises:
        StorageError: the file is damaged, foreign, or of another granularity.
        OSError: it is locked, or cannot be opened, read or written.
        ValueError: the device has too many blocks for this granularity.

    """
    file = BitmapFile.open(path, read_only=read_only)
    try:
        return _Opening(file, path, read_only=read_only).run(size, block_size, granularity)
    except BaseException:
        file.close()
        raise


class _Opening:
    """One opening of a file."""

    def __init__(self, file: BitmapFile, path: str, *, read_only: bool) -> None:
        self._file = file
        self._path = path
        self._read_only = read_only
        self._boot = boot_id()

    def run(self, size: int, block_size: int, granularity: int | None) -> Recorder:
        header = self._file.load()
        if header is None:
            header = Header.of(size, granularity or block_size)
            check_bits(size, header.granularity)
            self._store(header)
        else:
            self._check_granularity(header, block_size, granularity)
            header = self._check_state(header, size)
        live = self._load(header) if header.intervals else None
        if live is None:
            header = replace(header, open=())
        elif self._is_after_power_failure(header):
            header = self._recover(header, live)
        return Recorder(
            self._file,
            header,
            live,
            boot=self._boot,
            path=self._path,
            read_only=self._read_only,
        )

    def _check_granularity(self, header: Header, block_size: int, wanted: int | None) -> None:
        found = header.granularity
        if wanted not in {None, found}:
            raise StorageError(
                errno.EINVAL,
                f"{self._path} has a granularity of {found}, not {wanted}: leave that out, or name"
                " another file",
            )
        if block_size > found:
            raise StorageError(
                errno.EINVAL,
                f"{self._path} was made for blocks of {found} bytes or less, and the device has"
                f" {block_size}: open the device with smaller blocks, or name another file",
            )

    def _check_state(self, header: Header, size: int) -> Header:
        """Look at what does not depend on the bits; make durable what is there."""
        if not self._read_only:
            self._flush()
        if header.size != size:
            logger.warning(
                "%s is of a device of %d bytes, and this one has %d: everything counts as changed"
                " since each of its points",
                self._path,
                header.size,
                size,
            )
            check_bits(size, header.granularity)
            region = region_for(size, header.granularity)
            header = replace(points.everything(header), size=size, region=region)
            self._store(header)
        elif self._is_after_power_failure(header) and header.open == ((0, header.regions),):
            logger.warning(
                "the machine has lost power while %s was in use: everything counts as changed"
                " since each of its points",
                self._path,
            )
            header = points.everything(header)
            self._store(header)
        return header

    def _flush(self) -> None:
        """Flush, to learn of an error of the kernel's write-back, which is raised only once."""
        try:
            self._file.flush()
        except OSError as exc:
            raise self._file.damaged_error(f"has lost data ({exc.strerror})") from exc

    def _is_after_power_failure(self, header: Header) -> bool:
        """Return whether bits may be missing, of the regions that were open."""
        return bool(header.open) and (not self._boot or header.boot != self._boot)

    def _load(self, header: Header) -> bytearray:
        present = header.intervals[-1]
        bits = self._file.read(present.slot, 0, header.bitmap_size)
        if present.checksum not in {None, zlib.crc32(bits)}:
            raise self._file.damaged_error("has a bitmap with a wrong checksum")
        return bits

    def _recover(self, header: Header, live: bytearray) -> Header:
        """Let everything count as changed in the regions that were open."""
        bits = header.region // header.granularity
        for begin, end in header.open:
            first, last = begin * bits, min(end * bits, header.bits) - 1
            live[first >> 3 : (last >> 3) + 1] = with_bits(
                live[first >> 3 : (last >> 3) + 1], first & 7, last - (first & ~7)
            )
        if not self._read_only:
            self._file.write(header.intervals[-1].slot, 0, live)
            self._file.flush()
        header = replace(header, open=())
        self._store(header)
        return header

    def _store(self, header: Header) -> None:
        if not self._read_only:
            number = self._file.put_header(header)
            self._file.flush()
            self._file.header_is_durable(number)


def check_bits(size: int, granularity: int) -> None:
    """Refuse a device whose bitmap would take too much memory.

    Raises:
        ValueError: the message says which granularity is possible.

    """
    if -(-size // granularity) > MAX_BITS:
        least = 1 << (-(-size // MAX_BITS) - 1).bit_length()
        raise ValueError(
            f"a bitmap of {size} bytes in units of {granularity} takes more than"
            f" {MAX_BITS >> 23} MiB of memory: use granularity={least}, or more"
        )
