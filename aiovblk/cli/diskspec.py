"""Parse the SPEC of a disk in an object store, and open or make that disk."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import parse_qsl

from ..device import BlockDevice
from ..keyfiles import read_key_file
from ..storage import objects
from ..storage.objects.disk import BLOCK_SIZE, check_block_sizes, check_geometry
from ..storage.objects.url import SCHEMES as REMOTE_SCHEMES
from .errors import SpecError, UsageError
from .sizes import format_size, parse_size

SCHEMES = REMOTE_SCHEMES | {"folder"}

KEY_FILE = "AIOVBLK_KEY_FILE"
"""The environment variable that names the key file of an encrypted disk."""


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """The SPEC of a disk in an object store, parsed."""

    text: str
    """The location, as the user wrote it."""
    url: str
    """The URL of its folder."""
    size: int | None = None
    """Bytes of the disk to make if it does not exist; None: do not make one."""
    block_size: int | None = None
    """Bytes of its blocks; None: 4096 for a new disk, an existing one keeps its own."""
    chunk_size: int = 1 << 20
    compress: bool = False
    snapshot: str | None = None
    """The snapshot to read instead of the present state."""

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Parse ``s3://BUCKET/FOLDER?size=10G&compress=yes``, ``folder:PATH?...`` and the like.

        Raises:
            UsageError: an option is unknown, or its value is impossible.

        """
        where, _, query = spec.partition("?")
        kind, _, rest = where.partition(":")
        if kind == "folder" and not rest:
            raise UsageError("'folder:' names no folder; write folder:PATH")
        url = f"file://{os.path.realpath(rest)}" if kind == "folder" else where
        # The name of a snapshot may contain a plus, which parse_qsl() would make a space.
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

    @classmethod
    def parse_alone(cls, spec: str, *options: str) -> Self:
        """Parse the SPEC of a command that is about the whole disk, whose options say nothing.

        Args:
            spec: ``s3://BUCKET/FOLDER``, ``folder:PATH`` and the like.
            *options: that it may have nevertheless.

        Raises:
            UsageError: it has others, or they are impossible.

        """
        parsed = cls.parse(spec)
        given = parse_qsl(spec.partition("?")[2], keep_blank_values=True)
        if others := sorted({name for name, _ in given} - {*options}):
            wrong = " or ".join(f"?{name}=" for name in others)
            raise UsageError(f"write the disk alone, without {wrong}: {parsed.text}")
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
            UsageError: the SPEC has no size.
            FileExistsError: the disk exists.

        """
        if self.size is None:
            raise UsageError(f"size missing: add ?size=10G to {self.text}")
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
        """Open the disk; make it first if it does not exist and its size is known.

        Args:
            read_only: whether the disk must not be changed.
            size: bytes of a new disk, if the SPEC has no size.
            block_size: bytes of its blocks, likewise. An existing disk keeps its own.

        Raises:
            SpecError: the disk has another size than the SPEC says.
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


_MAX_KEY_FILE = 4096
"""Bytes: far more than a key, and the spaces or line breaks around it."""


def read_key(path: str | None = None) -> bytes | None:
    """Read the key from a file, by default the one that AIOVBLK_KEY_FILE names, if it names one.

    Raises:
        SpecError: the file holds no key: 32 bytes, or 64 hexadecimal digits.
        OSError: the file cannot be read.

    """
    path = path or os.environ.get(KEY_FILE)
    if not path:
        return None
    data = read_key_file(path, _MAX_KEY_FILE)
    if len(data) != objects.KEY_LENGTH:
        try:
            data = bytes.fromhex(data.decode("ascii").strip())
        except ValueError:
            data = b""
    if len(data) != objects.KEY_LENGTH:
        raise SpecError(f"{path} contains no key; `openssl rand -hex 32 > FILE` makes one")
    return data
