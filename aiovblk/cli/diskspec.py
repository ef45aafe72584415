"""From a SPEC to a disk in an object store."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl

from ..device import BlockDevice
from ..keyfiles import warn_if_shared
from ..storage import objects
from ..storage.objects.client import SCHEMES as REMOTE_SCHEMES
from ..storage.objects.disk import BLOCK_SIZE, check_block_sizes, check_geometry
from .errors import SpecError, UsageError
from .sizes import format_size, parse_size

SCHEMES = REMOTE_SCHEMES | {"folder"}

KEY_FILE = "AIOVBLK_KEY_FILE"
"""The environment variable that names the file of the key of an encrypted disk."""


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """What a SPEC says of a disk in an object store."""

    text: str
    """Where it is, as the user wrote it."""
    url: str
    """Of its folder."""
    size: int | None = None
    """Bytes of the disk to be made, if there is none."""
    block_size: int | None = None
    """Bytes of its blocks; of one that is made by default 4096."""
    chunk_size: int = 1 << 20
    compress: bool = False
    snapshot: str | None = None
    """The state to read instead of the present one."""

    @classmethod
    def parse(cls, spec: str) -> DiskSpec:
        """Read ``s3://BUCKET/FOLDER?size=10G&compress=yes``, ``folder:PATH?...`` and their kin.

        Raises:
            UsageError: an option is unknown, or has no such value.

        """
        where, _, query = spec.partition("?")
        kind, _, rest = where.partition(":")
        if kind == "folder" and not rest:
            raise UsageError("'folder:' names no folder; write folder:PATH")
        url = f"file://{os.path.realpath(rest)}" if kind == "folder" else where
        # The name of a snapshot may have a plus.
        options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))
        known = {"size", "block_size", "chunk_size", "compress", "snapshot"}
        if unknown := sorted(set(options) - known):
            raise UsageError(
                f"{spec!r} has unknown options ({', '.join(unknown)}); there are:"
                f" {', '.join(sorted(known))}"
            )
        sizes = {name: parse_size(text) for name, text in options.items() if name.endswith("size")}
        if options.get("snapshot") == "":
            raise UsageError(f"{spec!r} has a snapshot= without a name")
        parsed = cls(
            where,
            url,
            **sizes,
            compress=_parse_flag(options.get("compress", "no")),
            snapshot=options.get("snapshot"),
        )
        parsed._check()
        return parsed

    def _check(self) -> None:
        try:
            check_block_sizes(self.block_size or BLOCK_SIZE, self.chunk_size)
            if self.size is not None:
                check_geometry(self.size, self.block_size or BLOCK_SIZE, self.chunk_size)
        except ValueError as exc:
            raise UsageError(f"{self.text}: {exc}") from None

    async def create(self) -> None:
        """Make the disk.

        Raises:
            UsageError: its size is not given.
            FileExistsError: there is one.

        """
        if self.size is None:
            raise UsageError(f"how large is the disk to be? Write {self.text}?size=10G")
        await objects.create(
            self.url,
            size=self.size,
            block_size=self.block_size or BLOCK_SIZE,
            chunk_size=self.chunk_size,
            compress=self.compress,
            key=read_key(),
        )

    async def open(
        self,
        *,
        read_only: bool = False,
        size: int | None = None,
        block_size: int | None = None,
    ) -> BlockDevice:
        """Open the disk; make it first if there is none and its size is known.

        Args:
            read_only: whether to write nothing.
            size: of the disk to be made, if the SPEC does not say it.
            block_size: of its blocks, likewise. A disk that is there keeps its own.

        Raises:
            SpecError: it has another size than the SPEC says.
            OSError, ValueError: it cannot be opened or made.

        """
        new = replace(self, size=self.size or size, block_size=self.block_size or block_size)
        try:
            device = await self._open(read_only=read_only)
        except FileNotFoundError:
            if new.size is None or self.snapshot is not None or read_only:
                raise
            await new.create()
            device = await self._open(read_only=read_only)
        if self.size not in (None, device.size):
            await device.unmount()
            raise SpecError(
                f"the disk has {format_size(device.size)}, not what size= says; leave it out"
            )
        return device

    async def _open(self, *, read_only: bool) -> BlockDevice:
        return await objects.ObjectStoreDevice.open(
            self.url, snapshot=self.snapshot, read_only=read_only, key=read_key()
        )


def _parse_flag(text: str) -> bool:
    if text.lower() not in _YES | _NO:
        raise UsageError(f"compress= is yes or no, not {text!r}")
    return text.lower() in _YES


_YES = frozenset({"yes", "true", "1", "", "zstd"})
_NO = frozenset({"no", "false", "0"})


def read_key() -> bytes | None:
    """Return the key in the file that the environment names, if it names one.

    Raises:
        SpecError: it has no key: 32 bytes, or 64 hexadecimal digits.
        OSError: it cannot be read.

    """
    path = os.environ.get(KEY_FILE)
    if not path:
        return None
    data = Path(path).read_bytes()
    warn_if_shared(path)
    if len(data) != objects.KEY_LENGTH:
        try:
            data = bytes.fromhex(data.decode("ascii").strip())
        except ValueError:
            data = b""
    if len(data) != objects.KEY_LENGTH:
        raise SpecError(f"{path} has no key; `openssl rand -hex 32 > FILE` makes one")
    return data
