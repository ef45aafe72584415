"""Encode, decode and authenticate a disk's manifest (``disk.json``): what never changes about it.

Format versions (docs/reference/object-store-format.md):

* 1, of disks of earlier versions of aiovblk that are not encrypted; they are read, and written to
  once they are converted (:mod:`.convert`). Before format 2 there were encrypted disks in it too,
  of which only the key was checked. Such a disk is opened if it has no ancestors: its size is in
  its states, which are authenticated and have as many chunks as chunk_size makes of it. One with
  ancestors is refused, see :func:`.trust_origins`.
* 2, of encrypted ones. ``key_check`` has all other fields, encrypted and authenticated.
* 3 and 4, of new disks and of those that were converted: extents, segments and frames. 4, with
  ``key_check`` as in 2, if the disk is encrypted.

What decides which data is read of an encrypted disk, and what binds it to this disk:

* the manifest: ``key_check``, under the disk's own key;
* records, states (with the list of snapshots), chunks and segments: each is encrypted under a key
  that is derived from the user's and the identity, and authenticated with its name, which has its
  number, or its index and version (:mod:`.codec`);
* whose chunks are read: the manifest has path and identity of each ancestor, and an ancestor's
  chunks are encrypted under a key of its own;
* not the lease, which is plain: it decides who waits for whom, and never which data counts.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from ...errors import StorageError
from .client import Buffer
from .codec import KEY_HINT, ObjectCodec, damaged_error
from .keys import MANIFEST

FORMAT = "aiovblk-disk"
PLAIN_VERSION, SEALED_VERSION = 1, 2
"""Of disks that are only read: not encrypted, and encrypted."""
VERSION, ENCRYPTED_VERSION = 3, 4
"""Of disks that are written to, likewise."""

_KEY_CHECK = "key"  # the object name under which format 1 has encrypted no contents


@dataclass(frozen=True, slots=True)
class Origin:
    """An ancestor, some of whose chunks a clone shares."""

    path: str
    """Its folder, relative to the store's root."""
    disk: str
    """Its identity."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What never changes about a disk."""

    disk: str
    """Its identity, 32 hexadecimal digits."""
    size: int
    """Bytes, when it was created."""
    block_size: int
    chunk_size: int
    compress: bool
    key_check: str | None
    """An encrypted object, in hexadecimal, that only the right key opens; None: not encrypted."""
    origins: tuple[Origin, ...] = ()
    """Ancestors, number 1 first."""
    version: int = VERSION
    """Of the format."""

    def encode(self) -> bytes:
        """Encode the object."""
        fields = {"format": FORMAT, "version": self.version, **asdict(self)}
        return json.dumps(fields, indent=2).encode() + b"\n"

    def sealed(self, key: bytes | None, version: int = ENCRYPTED_VERSION) -> Self:
        """Return the same disk's manifest in the present format, authenticated with a key.

        Args:
            key: None if the disk is not encrypted, and nothing is authenticated.
            version: of the format, with a key.

        """
        if key is None:
            return replace(self, version=VERSION)
        new = replace(self, version=version)
        # Not in a session: earlier versions are to read it, if only to know that they must not.
        codec = ObjectCodec(self.identity, key=key, sessions=False)
        return replace(new, key_check=codec.seal(MANIFEST, new._authenticated()).hex())

    @property
    def is_writable(self) -> bool:
        """Whether the disk has the present format; one of an earlier format is only read."""
        return self.version in (VERSION, ENCRYPTED_VERSION)

    def check_writable(self, where: str) -> None:
        """Refuse to write to a disk of an earlier format.

        Raises:
            StorageError: (EROFS) it is one.

        """
        if not self.is_writable:
            reason = (
                f"{where}: the disk has format {self.version}, which is only read;"
                " `aiovblk convert SPEC` converts it in place, copying nothing"
            )
            raise StorageError(errno.EROFS, reason)

    def check_key(self, key: bytes | None, where: str = "this disk") -> None:
        """Verify the key, and that the manifest is unchanged since it was authenticated.

        Args:
            key: of the caller's; None without one.
            where: the disk's folder, for messages.

        Raises:
            StorageError: (EINVAL) a key for a disk that is not encrypted; (EACCES) none, or another
                one than the disk's; (EIO) the manifest was changed.

        """
        if self.key_check is None:
            if key is not None:
                reason = f"{where}: the disk is not encrypted; give no key {KEY_HINT}"
                raise StorageError(errno.EINVAL, reason)
            return
        if key is None:
            reason = f"{where}: the disk is encrypted; give its key {KEY_HINT}"
            raise StorageError(errno.EACCES, reason)
        sealed = self.version != PLAIN_VERSION
        name, expected = (MANIFEST, self._authenticated()) if sealed else (_KEY_CHECK, b"")
        try:
            contents = ObjectCodec(self.identity, key=key).open(name, bytes.fromhex(self.key_check))
        except StorageError:
            reason = f"{where}: this is not the key of the disk {KEY_HINT}"
            raise StorageError(errno.EACCES, reason) from None
        if contents != expected:
            raise damaged_error(f"{where}/{MANIFEST}", "it was changed since the disk was created")

    def check_origins(self, where: str = "this disk") -> None:
        """Refuse ancestors that are not authenticated.

        Raises:
            StorageError: (EACCES) it is an encrypted clone of format 1.

        """
        if self.origins and self.key_check is not None and self.version == PLAIN_VERSION:
            paths = ", ".join(origin.path for origin in self.origins)
            reason = (
                f"{where}: an earlier version has made this encrypted clone, and did not"
                f" authenticate whose chunks it reads: {paths}. If that is right,"
                " `aiovblk check SPEC --trust-origins` authenticates it; if not, disk.json was"
                " tampered with"
            )
            raise StorageError(errno.EACCES, reason)

    def _authenticated(self) -> bytes:
        fields: dict[str, Any] = asdict(replace(self, key_check=None))
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: Buffer, where: str = "") -> Self:
        """Decode the object.

        Args:
            data: the object.
            where: the disk's folder, for messages.

        Raises:
            StorageError: it is no disk's, a later version's, or damaged.

        """
        shown = f"{where}/{MANIFEST}" if where else MANIFEST
        try:
            fields = json.loads(bytes(data))
            kind, version = fields.pop("format"), fields.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            kind, version = None, None
        if not any(bytes(data)):
            reason = f"{shown} is empty: the disk was not finished; delete its folder"
            raise StorageError(errno.EINVAL, reason)
        if kind != FORMAT:
            raise StorageError(errno.EINVAL, f"{shown} is not that of a disk of aiovblk")
        if version not in (PLAIN_VERSION, SEALED_VERSION, VERSION, ENCRYPTED_VERSION):
            reason = (
                f"{shown}: the disk has format {version}, this aiovblk knows {PLAIN_VERSION} to"
                f" {ENCRYPTED_VERSION} only; upgrade it"
            )
            raise StorageError(errno.EINVAL, reason)
        try:
            origins = tuple(Origin(**each) for each in fields.pop("origins"))
            manifest = cls(**fields, origins=origins, version=version)
            bytes.fromhex(manifest.disk + (manifest.key_check or ""))
        except (ValueError, TypeError, KeyError) as exc:
            raise damaged_error(shown, str(exc)) from None
        if version in (SEALED_VERSION, ENCRYPTED_VERSION) and manifest.key_check is None:
            raise damaged_error(shown, "its seal is missing")
        return manifest

    @property
    def identity(self) -> bytes:
        """The bytes that the disk's objects are bound to."""
        return bytes.fromhex(self.disk)
