"""What a device holds, for what is kept of it in files: a cache, an overlay.

Never the SPEC as it was typed: ``file:disk.img`` is another disk in another directory.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from urllib.parse import parse_qsl, urlsplit

from ..aio.gather import run_bounded
from ..client import RemoteDevice
from ..device import BlockDevice
from ..protocol.uri import SCHEMES, URI
from ..storage import FileDevice, HTTPDevice, ObjectStoreDevice

# Of the parameters of signed URLs: Amazon's, Google's, CloudFront's, Azure's, and in general.
_SIGNATURE = re.compile(
    r"x-(amz|goog|ms)-.*|awsaccesskeyid|googleaccessid|key-pair-id|policy|expires"
    r"|s(v|s|rt|r|t|e|p|pr|ip|ig|koid|ktid|kt|ke|ks|kv|dd)|.*(signature|token).*",
    re.IGNORECASE,
)

_SAMPLES = 64
_BEGINNING = 64 * 1024  # bytes that are looked at as a whole: partition tables, superblocks


def contents_of(device: BlockDevice, spec: str) -> Callable[[], str]:
    """Return what tells a cache whether it is one of this device, and of what that holds now.

    A device with an attribute ``identity`` says so itself; of others it is where they are.

    Args:
        device: that ``spec`` names.
        spec: as it was typed.

    """
    if isinstance(device, HTTPDevice):
        return lambda: f"{device.identity} {_query_of(spec)}"
    if isinstance(getattr(device, "identity", None), str):
        return lambda: str(device.identity)  # type: ignore[attr-defined]
    name = _where(spec)
    return lambda: name


def _query_of(url: str) -> str:
    """A hash of the query of a URL, which may tell one file from another; but no signature does."""
    query = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    kept = [each for each in query if not _SIGNATURE.fullmatch(each[0])]
    return hashlib.sha256(repr(kept).encode()).hexdigest()[:32] if kept else ""


def _where(spec: str) -> str:
    kind = spec.partition(":")[0]
    if kind.lower() in SCHEMES:
        uri = URI.parse(spec)
        socket = uri.socket
        if socket is not None and not socket.startswith("\0"):
            socket = os.path.realpath(socket)
        return str(replace(uri, socket=socket, tls_certificates=None, tls_psk_file=None))
    if kind == "memory":
        return f"memory {secrets.token_hex(16)}"  # it is another one each time
    where, _, attribute = spec.rpartition(":")
    file = where if where.endswith(".py") else getattr(sys.modules.get(where), "__file__", None)
    return f"{os.path.realpath(file or where)}:{attribute}"


def base_of(device: BlockDevice) -> str | Callable[[int], Awaitable[str]] | None:
    """Return what tells an overlay whether this is the device that it was made over.

    A file and a remote disk may have been moved since, but never changed: of these it is what is
    written in some places.
    """
    if isinstance(device, HTTPDevice):
        return device.identity
    if isinstance(device, ObjectStoreDevice):
        return partial(_said, device)
    return partial(sample, device) if isinstance(device, FileDevice | RemoteDevice) else None


async def _said(device: ObjectStoreDevice, size: int) -> str:
    return device.identity


async def sample(device: BlockDevice, size: int) -> str:
    """Return a hash of what a device holds at its beginning and in 64 other places.

    Args:
        device: whose.
        size: bytes of it that are looked at.

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
