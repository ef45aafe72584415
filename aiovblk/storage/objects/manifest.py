"""What never changes about a disk.

Formats:

* 1, of disks that are not encrypted. Earlier versions of aiovblk made encrypted ones of it too, in
  which the key was checked and nothing else. Such a disk is opened if it has no ancestors: its size
  is in its states, which are authenticated and have as many chunks as chunk_size makes of it. One
  with ancestors is refused, see :func:`.trust_origins`.
* 2, of encrypted disks. ``key_check`` has all other fields, sealed.

What decides what is read of an encrypted disk, and what binds it to this disk:

* the description: ``key_check``, under the disk's own key;
* records, states (with the list of snapshots) and chunks: each is sealed under the key that is
  derived from the user's and the identity, with its name, which has its number, or its index and
  version (:mod:`.sealing`);
* whose chunks are read: the description has path and identity of each ancestor, and its chunks are
  sealed under a key of its own;
* not the lease, which is plain: it decides who waits for whom, and never what counts.
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
VERSION = 1
SEALED_VERSION = 2

_KEY_CHECK = "key"  # the name under which format 1 has sealed nothing


@dataclass(frozen=True, slots=True)
class Origin:
    """An ancestor, some of whose chunks a clone shares."""

    path: str
    """Its folder, seen from the store's root."""
    disk: str
    """Its identity."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What never changes about a disk."""

    disk: str
    """Its identity, 32 hexadecimal digits."""
    size: int
    """Bytes, when it was made."""
    block_size: int
    chunk_size: int
    compress: bool
    key_check: str | None
    """A sealed object, in hexadecimal digits, that only the right key opens; None: no encryption"""
    origins: tuple[Origin, ...] = ()
    """Ancestors, number 1 first."""
    version: int = VERSION
    """Of the format."""

    def encode(self) -> bytes:
        """Return the object."""
        fields = {"format": FORMAT, "version": self.version, **asdict(self)}
        return json.dumps(fields, indent=2).encode() + b"\n"

    def sealed(self, key: bytes | None) -> Self:
        """Return the description of the same disk that only this key opens; of None as it is."""
        if key is None:
            return self
        new = replace(self, version=SEALED_VERSION)
        check = ObjectCodec(self.identity, key=key).seal(MANIFEST, new._authenticated())
        return replace(new, key_check=check.hex())

    def check_key(self, key: bytes | None) -> None:
        """Refuse another key than that of the disk, and a description that was changed.

        Raises:
            StorageError: so it is.

        """
        if self.key_check is None:
            if key is not None:
                raise StorageError(
                    errno.EINVAL, f"the disk is not encrypted; give no key {KEY_HINT}"
                )
            return
        if key is None:
            raise StorageError(errno.EACCES, f"the disk is encrypted; give its key {KEY_HINT}")
        sealed = self.version == SEALED_VERSION
        name, expected = (MANIFEST, self._authenticated()) if sealed else (_KEY_CHECK, b"")
        try:
            found = ObjectCodec(self.identity, key=key).open(name, bytes.fromhex(self.key_check))
        except StorageError:
            raise StorageError(errno.EACCES, "this is not the key of the disk") from None
        if found != expected:
            raise damaged_error(MANIFEST, "it was changed since the disk was made")

    def check_origins(self) -> None:
        """Refuse ancestors that nothing vouches for.

        Raises:
            StorageError: it is an encrypted clone of format 1.

        """
        if self.origins and self.key_check is not None and self.version != SEALED_VERSION:
            paths = ", ".join(origin.path for origin in self.origins)
            reason = (
                "an earlier version has made this encrypted clone, and did not authenticate whose"
                f" chunks it reads: {paths}. If that is right,"
                " `aiovblk check SPEC --trust-origins` authenticates it; if not, somebody has"
                " changed disk.json"
            )
            raise StorageError(errno.EACCES, reason)

    def _authenticated(self) -> bytes:
        fields: dict[str, Any] = asdict(replace(self, key_check=None))
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """Return what an object says.

        Raises:
            StorageError: it is no disk's, a later version's, or damaged.

        """
        try:
            fields = json.loads(bytes(data))
            kind, version = fields.pop("format"), fields.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            kind, version = None, None
        if not any(bytes(data)):
            reason = f"{MANIFEST} is empty: the disk was not finished; delete its folder"
            raise StorageError(errno.EINVAL, reason)
        if kind != FORMAT:
            raise StorageError(errno.EINVAL, f"{MANIFEST} is not that of a disk of aiovblk")
        if version not in (VERSION, SEALED_VERSION):
            known = f"{VERSION} and {SEALED_VERSION}"
            reason = f"the disk has format {version}, this aiovblk knows {known} only; upgrade it"
            raise StorageError(errno.EINVAL, reason)
        try:
            origins = tuple(Origin(**each) for each in fields.pop("origins"))
            description = cls(**fields, origins=origins, version=version)
            bytes.fromhex(description.disk + (description.key_check or ""))
        except (ValueError, TypeError, KeyError) as exc:
            raise damaged_error(MANIFEST, str(exc)) from None
        if version == SEALED_VERSION and description.key_check is None:
            raise damaged_error(MANIFEST, "its seal is missing")
        return description

    @property
    def identity(self) -> bytes:
        """What the disk's objects are bound to."""
        return bytes.fromhex(self.disk)
