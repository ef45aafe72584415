"""Objects as they are stored: checked against damage, on demand compressed and encrypted.

An object is a header and a payload::

    magic     4   b"avb1"
    codec     1   0 as it is, 1 zstd
    cipher    1   0 none, 1 AES-256-GCM
    reserved  2   0
    length    4   bytes of the contents
    check     4   CRC-32 of the object's name and the payload; 0 if it is encrypted
    nonce    12   only if it is encrypted

all numbers little-endian. An object is bound to its name and its disk: one that turns up elsewhere
is damaged. If it is encrypted, the header and the name are authenticated with it.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import zlib
from array import array
from types import ModuleType
from typing import Any

from ...errors import StorageError
from ...extras import extra
from ...text import quote
from .client import Buffer

_HEADER = struct.Struct("<4sBBHII")
_MAGIC = b"avb1"
_NONCE = 12
_TAG = 16
_MAX_HEADER = 1 << 29  # a record with all chunks of the largest disk has half of that
KEY_LENGTH = 32
"""Bytes of a key."""
KEY_HINT = "(key=; the command takes it from the file that AIOVBLK_KEY_FILE names)"
"""Where a key comes from, for messages."""


class TornError(StorageError):
    """An object is empty, cut off, or all zeroes: what a power failure leaves of a file."""


class ObjectCodec:
    """How the objects of one disk are sealed.

    Calls may take milliseconds for each MiB, and can be made in any thread.

    Args:
        disk: the disk's identity.
        compress: whether what is stored is compressed (zstd), where that makes it smaller.
        key: 32 bytes, from which the disk's own key is derived; None if nothing is encrypted.

    Raises:
        MissingExtraError: a package is missing; the message says which.
        ValueError: the key has another length.

    """

    def __init__(self, disk: bytes, *, compress: bool = False, key: bytes | None = None) -> None:
        self._disk = disk
        self._compress = compress
        self._gcm = None
        if compress:
            _zstd()
        if key is not None:
            with extra("objectstore", "an encrypted disk"):
                from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._gcm = AESGCM(_derive_key(key, disk))

    @property
    def is_expensive(self) -> bool:
        """Whether sealing takes so long that it belongs in a thread."""
        return self._compress or self._gcm is not None

    def seal(self, name: str, contents: Buffer) -> bytes:
        """Return the object of that name with these contents."""
        payload: Buffer = contents
        codec = 0
        if self._compress:
            smaller = _zstd().ZstdCompressor(level=1).compress(contents)
            if len(smaller) < len(contents):
                payload, codec = smaller, 1
        bound = self._associated_data(name)
        if self._gcm is None:
            check = zlib.crc32(payload, zlib.crc32(bound))
            header = _HEADER.pack(_MAGIC, codec, 0, 0, len(contents), check)
            return b"".join((header, payload))
        header = _HEADER.pack(_MAGIC, codec, 1, 0, len(contents), 0)
        # Random: up to 2**32 objects may be sealed with one key (NIST SP 800-38D, 8.3), and each
        # disk has a key of its own.
        nonce = os.urandom(_NONCE)
        return b"".join((header, nonce, self._gcm.encrypt(nonce, payload, header + bound)))

    def open(self, name: str, data: Buffer, *, longest: int = _MAX_HEADER) -> memoryview:
        """Return the contents of an object, a read-only view.

        Args:
            name: of the object.
            data: the object.
            longest: bytes that the contents may have.

        Raises:
            TornError: it was never written as a whole.
            StorageError: (EIO) it is damaged, or (EINVAL) it needs a key that is not there.

        """
        data = memoryview(data).cast("B").toreadonly()
        if len(data) < _HEADER.size:
            raise torn_error(name, "it is too short")
        magic, codec, cipher, reserved, length, check = _HEADER.unpack_from(data)
        if not any(data[: _HEADER.size]) and not any(data):
            raise torn_error(name, "it is all zeroes")
        if magic != _MAGIC or codec > 1 or cipher > 1 or reserved:
            raise damaged_error(name, "it is no object of a disk, or of a later version of aiovblk")
        if length > longest:
            raise damaged_error(name, f"it has {length} bytes, more than {longest}")
        payload = data[_HEADER.size :]
        if not codec and len(payload) < length + (_NONCE + _TAG if cipher else 0):
            raise torn_error(name, f"it has fewer bytes than the {length} that it should have")
        if cipher:
            payload = self._decrypt(name, bytes(data[: _HEADER.size]), payload)
        elif self._gcm is not None:
            # Whoever can write to the store could otherwise replace what is encrypted.
            raise damaged_error(name, "it is not encrypted, but the disk is")
        elif zlib.crc32(payload, zlib.crc32(self._associated_data(name))) != check:
            raise damaged_error(name, "its checksum does not match")
        contents = _decompress(name, payload, length) if codec else payload
        if len(contents) != length:
            raise damaged_error(name, f"it has {len(contents)} bytes instead of {length}")
        return contents

    def _decrypt(self, name: str, header: bytes, payload: memoryview) -> memoryview:
        from cryptography.exceptions import InvalidTag

        if self._gcm is None:
            raise StorageError(errno.EINVAL, f"the disk is encrypted; give its key {KEY_HINT}")
        nonce, ciphertext = payload[:_NONCE], payload[_NONCE:]
        try:
            return memoryview(
                self._gcm.decrypt(nonce, ciphertext, header + self._associated_data(name))
            )
        except InvalidTag:
            raise damaged_error(
                name, "it cannot be decrypted: another key, or it was changed"
            ) from None

    def _associated_data(self, name: str) -> bytes:
        return self._disk + name.encode()


def damaged_error(name: str, reason: str) -> StorageError:
    """An error about an object that is not what it should be."""
    return StorageError(errno.EIO, f"the object {quote(name)} is damaged: {quote(reason)}")


def torn_error(name: str, reason: str) -> TornError:
    """An error about an object that is not whole."""
    return TornError(errno.EIO, f"the object {name} is damaged: {reason}")


def _decompress(name: str, payload: memoryview, length: int) -> memoryview:
    zstd = _zstd()
    try:
        # Whose word is taken for how much memory is needed.
        if zstd.frame_content_size(payload) != length:
            raise damaged_error(name, "it has another length when it is decompressed")
        contents = zstd.ZstdDecompressor().decompress(payload)
    except zstd.ZstdError as exc:
        raise damaged_error(name, str(exc)) from None
    return memoryview(contents)


def _derive_key(key: bytes, disk: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    if len(key) != KEY_LENGTH:
        raise ValueError(f"a key has {KEY_LENGTH} bytes, not {len(key)}")
    return HKDF(SHA256(), KEY_LENGTH, salt=disk, info=b"aiovblk objects").derive(key)


def _zstd() -> ModuleType:
    with extra("objectstore", "a disk with compression"):
        import zstandard

    return zstandard


_MAX_LINE = 16 << 20


def to_line(fields: dict[str, Any]) -> bytes:
    """Return the line."""
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def split(data: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Return what the line says, and what is behind it."""
    line, _, _ = bytes(data[:_MAX_LINE]).partition(b"\n")
    return json.loads(line), data[len(line) + 1 :]


def to_bytes(numbers: array[int]) -> bytes:
    """Return numbers as they are stored, little-endian."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def from_bytes(data: memoryview) -> array[int]:
    """Return the numbers that are stored so."""
    numbers = array("Q")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
