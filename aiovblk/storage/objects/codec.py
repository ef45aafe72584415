"""Encode and decode objects: checksum, optional compression (zstd) and encryption (AES-256-GCM).

An object is a header and a payload::

    magic     4   b"avb1"
    codec     1   0 as it is, 1 zstd
    cipher    1   0 none, 1 AES-256-GCM under the disk's key, 2 under the key of a session
    reserved  2   0
    length    4   bytes of the contents
    check     4   CRC-32 of the object's name and the payload; 0 if it is encrypted
    salt     16   only with cipher 2: what the session's key is derived from
    nonce    12   only if it is encrypted

all numbers little-endian. To *seal* contents is to make such an object of them.

What holds here:

* An object is bound to its name (its key below the disk's folder) and to its disk: under another
  name, or in another disk, it is damaged. If it is encrypted, the header and the name are
  authenticated with it, as associated data.
* A part of an object (a frame, see :mod:`.frames`) is sealed like an object, and is bound to its
  number as well.
* An encrypted disk accepts encrypted objects only.
* Each disk has an encryption key of its own, derived from the user's key and the disk's identity.
* Each codec, and so each writer's epoch, encrypts in a *session*: under a key that is derived from
  the disk's and a random salt. The nonces are random, and a session ends after
  :data:`SESSION_OBJECTS`, so no key meets a nonce twice however many records a disk has.

The contents of records and states are one line of JSON and binary arrays of 64-bit numbers, which
the functions at the end read and write.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import zlib
from array import array
from collections import OrderedDict
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ...errors import StorageError
from ...extras import extra
from ...text import quote
from .client import Buffer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_LENGTH = 32
"""Bytes of a key."""
KEY_HINT = "(key=; the command takes it from the file that AIOVBLK_KEY_FILE names)"
"""Where a key comes from, for messages."""

_HEADER = struct.Struct("<4sBBHII")
_MAGIC = b"avb1"
_NONCE = 12
_TAG = 16
_SALT = 16
_UNENCRYPTED, _DISK_KEY, _SESSION_KEY = range(3)  # the ciphers
SESSION_OBJECTS = 1 << 30
"""Objects and frames that one session encrypts; then another begins. Of so many random nonces of 96
bits two are alike with a probability of 2**-37; NIST SP 800-38D, 8.3, allows 2**-32."""
_KNOWN_SESSIONS = 64  # keys of other sessions that are kept, to decrypt with
_ADDED = (0, _NONCE + _TAG, _SALT + _NONCE + _TAG)  # bytes behind the header, by cipher
_MAX_CONTENTS = 1 << 29  # bytes; a record with all chunks of the largest disk has half of that
_MAX_LINE = 16 << 20


class DamagedError(StorageError):
    """An object is missing, or is not what was stored."""


class TornError(DamagedError):
    """An object is empty, cut off, or all zeroes: what a power failure leaves of a file."""


class _Session:
    """A key that only one codec encrypts with, for a bounded number of objects."""

    def __init__(self, secret: bytes) -> None:
        self.salt = os.urandom(_SALT)
        self.gcm = _session_cipher(secret, self.salt)
        self._left = iter(range(SESSION_OBJECTS))

    def take(self) -> bool:
        """Count one more object; return whether it may still be encrypted with this key."""
        return next(self._left, None) is not None  # atomic, so that any thread may call it


class ObjectCodec:
    """Encode and decode the objects of one disk.

    Concurrency: calls may be made in any thread. They may take milliseconds for each MiB.

    Args:
        disk: the disk's identity.
        compress: whether what is stored is compressed (zstd), where that makes it smaller.
        key: 32 bytes, from which the disk's own key is derived; None if nothing is encrypted.
        where: the disk's folder, for messages; may be empty.
        sessions: whether to encrypt under session keys; otherwise under the disk's own key, as
            earlier versions do, which is for the few objects that these are to read.

    Raises:
        MissingExtraError: a package is missing; the message says which.
        ValueError: the key has another length.

    """

    def __init__(
        self,
        disk: bytes,
        *,
        compress: bool = False,
        key: bytes | None = None,
        where: str = "",
        sessions: bool = True,
    ) -> None:
        self._disk = disk
        self.compress = compress
        self._where = where
        self._gcm = None
        self._secret = b""
        self._session: _Session | None = None
        self._known: OrderedDict[bytes, AESGCM] = OrderedDict()
        if compress:
            _zstd()
        if key is not None:
            with extra("objectstore", "an encrypted disk"):
                from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._gcm = AESGCM(_derive_key(key, disk, b"aiovblk objects"))
            self._secret = _derive_key(key, disk, b"aiovblk sessions")
            self._session = _Session(self._secret) if sessions else None

    def display_name(self, name: str) -> str:
        """Return an object's name with its disk's folder before it, for messages."""
        return f"{self._where}/{name}" if self._where else name

    @property
    def overhead(self) -> int:
        """Bytes by which an object is longer than its payload."""
        if self._gcm is None:
            return _HEADER.size
        return _HEADER.size + _NONCE + _TAG + (_SALT if self._session else 0)

    def seal(self, name: str, contents: Buffer, *, part: int | None = None) -> bytes:
        """Encode the object of that name with these contents, or a part of it by its number."""
        return b"".join(self.seal_pieces(name, contents, part=part))

    def seal_pieces(
        self, name: str, contents: Buffer, *, part: int | None = None
    ) -> tuple[Buffer, ...]:
        """Encode an object, or a part, like :meth:`seal`; what is returned is to be joined."""
        payload: Buffer = contents
        codec = 0
        if self.compress:
            smaller = _zstd().ZstdCompressor(level=1).compress(contents)
            if len(smaller) < len(contents):
                payload, codec = smaller, 1
        bound = self._associated_data(name, part)
        if self._gcm is None:
            check = zlib.crc32(payload, zlib.crc32(bound))
            header = _HEADER.pack(_MAGIC, codec, _UNENCRYPTED, 0, len(contents), check)
            return header, payload
        nonce = os.urandom(_NONCE)
        if self._session is None:
            header = _HEADER.pack(_MAGIC, codec, _DISK_KEY, 0, len(contents), 0)
            return header, nonce, self._gcm.encrypt(nonce, payload, header + bound)
        session = self._current_session()
        header = _HEADER.pack(_MAGIC, codec, _SESSION_KEY, 0, len(contents), 0) + session.salt
        return header, nonce, session.gcm.encrypt(nonce, payload, header + bound)

    def _current_session(self) -> _Session:
        session = self._session
        while session is None or not session.take():
            session = self._session = _Session(self._secret)
        return session

    def open(
        self, name: str, data: Buffer, *, longest: int = _MAX_CONTENTS, part: int | None = None
    ) -> memoryview:
        """Decode an object: verify it, decrypt and decompress it, and return a read-only view.

        Args:
            name: of the object.
            data: the object, or a part of it.
            longest: bytes that the contents may have.
            part: the number of the part; None for a whole object.

        Raises:
            TornError: it was never written as a whole.
            StorageError: (EIO) it is damaged, or (EINVAL) it needs a key that is not there.

        """
        shown = self.display_name(name)
        data = memoryview(data).cast("B").toreadonly()
        codec, cipher, length, check = _parse_header(data, shown, longest)
        payload = data[_HEADER.size :]
        if not codec and len(payload) < length + _ADDED[cipher]:
            raise torn_error(shown, f"it has fewer bytes than the {length} that it should have")
        bound = self._associated_data(name, part)
        if cipher:
            payload = self._decrypt(shown, data, cipher, bound)
        elif self._gcm is not None:
            # Otherwise anyone who can write to the store could replace what is encrypted.
            raise damaged_error(shown, "it is not encrypted, but the disk is")
        elif zlib.crc32(payload, zlib.crc32(bound)) != check:
            raise damaged_error(shown, "its checksum does not match")
        contents = _decompress(shown, payload, length) if codec else payload
        if len(contents) != length:
            raise damaged_error(shown, f"it has {len(contents)} bytes instead of {length}")
        return contents

    def _decrypt(self, shown: str, data: memoryview, cipher: int, bound: bytes) -> memoryview:
        from cryptography.exceptions import InvalidTag

        if self._gcm is None:
            reason = f"{shown}: the disk is encrypted; give its key {KEY_HINT}"
            raise StorageError(errno.EINVAL, reason)
        begin = _HEADER.size + (_SALT if cipher == _SESSION_KEY else 0)
        header, payload = bytes(data[:begin]), data[begin:]
        gcm = self._gcm if cipher == _DISK_KEY else self._session_of(header[_HEADER.size :])
        nonce, ciphertext = payload[:_NONCE], payload[_NONCE:]
        try:
            return memoryview(gcm.decrypt(nonce, ciphertext, header + bound))
        except (InvalidTag, ValueError):  # ValueError: the nonce is cut off
            raise damaged_error(
                shown, "it cannot be decrypted: another key, or it was changed"
            ) from None

    def _session_of(self, salt: bytes) -> AESGCM:
        """Return the cipher of the session, another process's say, that has this salt."""
        if self._session is not None and self._session.salt == salt:
            return self._session.gcm
        found = self._known.get(salt)
        if found is None:
            found = self._known[salt] = _session_cipher(self._secret, salt)
            while len(self._known) > _KNOWN_SESSIONS:
                with suppress(KeyError):  # another thread was first
                    self._known.popitem(last=False)
        return found

    def _associated_data(self, name: str, part: int | None) -> bytes:
        return self._disk + (name if part is None else f"{name}#{part}").encode()


def _parse_header(data: memoryview, shown: str, longest: int) -> tuple[int, int, int, int]:
    """Return codec, cipher, length and checksum of an object, if they are possible."""
    if len(data) < _HEADER.size:
        raise torn_error(shown, "it is too short")
    magic, codec, cipher, reserved, length, check = _HEADER.unpack_from(data)
    if not any(data[: _HEADER.size]) and not any(data):
        raise torn_error(shown, "it is all zeroes")
    if magic != _MAGIC or codec > 1 or cipher > _SESSION_KEY or reserved:
        raise damaged_error(shown, "it is no object of a disk, or of a later version of aiovblk")
    if length > longest:
        raise damaged_error(shown, f"it has {length} bytes, more than {longest}")
    return codec, cipher, length, check


def damaged_error(name: str, reason: str) -> DamagedError:
    """Return an error (EIO) that says which object is damaged, and how."""
    return DamagedError(errno.EIO, f"the object {quote(name)} is damaged: {quote(reason)}")


def torn_error(name: str, reason: str) -> TornError:
    """Return an error (EIO) that says which object was not written as a whole."""
    return TornError(errno.EIO, f"the object {quote(name)} is damaged: {reason}")


def _decompress(shown: str, payload: memoryview, length: int) -> memoryview:
    zstd = _zstd()
    try:
        # The frame itself says how much memory is allocated: compare before that.
        if zstd.frame_content_size(payload) != length:
            raise damaged_error(shown, "it has another length when it is decompressed")
        contents = zstd.ZstdDecompressor().decompress(payload)
    except zstd.ZstdError as exc:
        raise damaged_error(shown, str(exc)) from None
    return memoryview(contents)


def _derive_key(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    if len(key) != KEY_LENGTH:
        raise ValueError(f"a key has {KEY_LENGTH} bytes, not {len(key)}")
    return HKDF(SHA256(), KEY_LENGTH, salt=salt, info=purpose).derive(key)


def _session_cipher(secret: bytes, salt: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(_derive_key(secret, salt, b"aiovblk session"))


def _zstd() -> ModuleType:
    with extra("objectstore", "a disk with compression"):
        import zstandard

    return zstandard


# The contents of records and states


def to_line(fields: dict[str, Any]) -> bytes:
    """Encode fields as one line of JSON."""
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def split(data: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Decode the line of JSON at the beginning; return its fields, and the bytes behind it."""
    line, _, _ = bytes(data[:_MAX_LINE]).partition(b"\n")
    return json.loads(line), data[len(line) + 1 :]


def to_bytes(numbers: array[int]) -> bytes:
    """Encode numbers of 64 bits, little-endian."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def from_bytes(data: memoryview) -> array[int]:
    """Decode numbers of 64 bits, little-endian."""
    numbers = array("Q")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
