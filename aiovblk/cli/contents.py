"""Identify what a device holds, so that a cache file or an overlay is not used with another one.

Never the SPEC as it was typed: ``file:disk.img`` is another disk in another directory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qsl, urlsplit

from ..aio.gather import run_bounded
from ..client import RemoteDevice
from ..device import BlockDevice
from ..storage import FileDevice, HTTPDevice, ObjectStoreDevice
from .spec import find_scheme

# Of the parameters of signed URLs: Amazon's, Google's, CloudFront's, Azure's, and in general.
_SIGNATURE = re.compile(
    r"x-(amz|goog|ms)-.*|awsaccesskeyid|googleaccessid|key-pair-id|policy|expires"
    r"|s(v|s|rt|r|t|e|p|pr|ip|ig|koid|ktid|kt|ke|ks|kv|dd)|.*(signature|token).*",
    re.IGNORECASE,
)

_SAMPLES = 64
_BEGINNING = 64 * 1024  # bytes that are read as a whole: partition tables, superblocks


Base = str | Callable[[int], Awaitable[str]] | None
"""What identifies the base of an overlay, see :func:`base_of`."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What is below a layer, identified for the files of a cache and of an overlay."""

    identity: Callable[[], str]
    """For a cache, see :func:`contents_of`."""
    base: Base
    """For an overlay, see :func:`base_of`."""

    @classmethod
    def of(cls, device: BlockDevice, spec: str) -> Contents:
        """Identify what a device holds that was opened from ``spec``."""
        return cls(contents_of(device, spec), base_of(device))

    def behind(self, layer: str) -> Contents:
        """Identify what is seen through a layer that shows other bytes; it is named in words."""
        identity, base = self.identity, self.base
        if callable(base):
            return Contents(lambda: f"{identity()} {layer}", partial(_behind, base, layer))
        seen = None if base is None else f"{base} {layer}"
        return Contents(lambda: f"{identity()} {layer}", seen)


async def _behind(base: Callable[[int], Awaitable[str]], layer: str, size: int) -> str:
    return f"{await base(size)} {layer}"


def contents_of(device: BlockDevice, spec: str) -> Callable[[], str]:
    """Return a function that identifies a device and its present contents, for a cache file.

    A device with an attribute ``identity`` is identified by that, others by where they are.

    Args:
        device: opened from ``spec``.
        spec: as it was typed.

    """
    if isinstance(device, HTTPDevice):
        return lambda: f"{device.identity} {_query_of(spec)}"
    if isinstance(getattr(device, "identity", None), str):
        return lambda: str(device.identity)  # type: ignore[attr-defined]  # looked for above
    location = find_scheme(spec).location(spec)
    return lambda: location


def _query_of(url: str) -> str:
    """Hash the query of a URL, which may select the file; signatures are left out, they change."""
    query = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    kept = [each for each in query if not _SIGNATURE.fullmatch(each[0])]
    return hashlib.sha256(repr(kept).encode()).hexdigest()[:32] if kept else ""


def base_of(device: BlockDevice) -> Base:
    """Return what identifies a device as the base that an overlay was made over.

    A file and a remote disk may have been moved since, but never changed: these are identified by
    a sample of their contents.
    """
    if isinstance(device, HTTPDevice):
        return device.identity
    if isinstance(device, ObjectStoreDevice):
        return partial(_identity, device)
    return partial(sample, device) if isinstance(device, FileDevice | RemoteDevice) else None


async def _identity(device: ObjectStoreDevice, size: int) -> str:
    return device.identity


async def sample(device: BlockDevice, size: int) -> str:
    """Hash what a device holds at its beginning and in 64 other places.

    Args:
        device: to be read.
        size: bytes of it that count.

    """
    unit = max(4096, device.block_size)
    last = max(size - 1, 0) // unit
    beginning = range(min(_BEGINNING // unit, last))
    units = sorted({*beginning, *(last * number // _SAMPLES for number in range(_SAMPLES + 1))})
    found: dict[int, bytes] = {}

    async def read(number: int) -> None:
        begin = number * unit
        found[number] = bytes(await device.read(begin, min(unit, size - begin)))

    await run_bounded(partial(read, number) for number in units)
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    for number in units:
        digest.update(found[number])
    return f"sample {digest.hexdigest()}"
