"""What never changes about a disk."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass
from typing import Self

from ...errors import StorageError
from .names import DESCRIPTION
from .sealing import damaged
from .store import Buffer

FORMAT = "aiovblk-disk"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Origin:
    """An ancestor, some of whose chunks a clone shares."""

    path: str
    """Its folder, seen from the store's root."""
    disk: str
    """Its identity."""


@dataclass(frozen=True, slots=True)
class Description:
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

    def encode(self) -> bytes:
        """Return the object."""
        fields = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(fields, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """Return what an object says.

        Raises:
            StorageError: it is no disk's, a later version's, or damaged.

        """
        try:
            fields = json.loads(bytes(data))
            kind, version = fields.pop("format"), fields.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError):
            kind, version = None, None
        if kind != FORMAT:
            raise StorageError(errno.EINVAL, f"{DESCRIPTION} is not that of a disk of aiovblk")
        if version != VERSION:
            reason = f"the disk has format {version}, this aiovblk knows {VERSION} only; upgrade it"
            raise StorageError(errno.EINVAL, reason)
        try:
            origins = tuple(Origin(**each) for each in fields.pop("origins"))
            description = cls(**fields, origins=origins)
            bytes.fromhex(description.disk + (description.key_check or ""))
        except (ValueError, TypeError, KeyError) as exc:
            raise damaged(DESCRIPTION, str(exc)) from None
        return description

    @property
    def identity(self) -> bytes:
        """What the disk's objects are bound to."""
        return bytes.fromhex(self.disk)
