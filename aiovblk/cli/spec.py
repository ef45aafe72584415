"""Open the device that a SPEC on the command line names.

A SPEC is ``SCHEME:REST``, or else ``module:attribute``. The table :data:`SCHEMES` says for each
scheme what opens it and what it may be combined with; a new kind of SPEC is a function and a line
there. ``?block_size=BYTES`` may follow any SPEC (:func:`split_block_size`).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from ..arguments import check_block_size
from ..device import BlockDevice
from ..protocol.uri import SCHEMES as NBD_SCHEMES
from ..protocol.uri import without_password
from ..storage import BlockSize, FileDevice, HTTPDevice, MemoryDevice
from ..storage.http import SCHEMES as HTTP_SCHEMES
from ..storage.http import redact_url
from .attribute import load_attribute
from .diskspec import SCHEMES as DISK_SCHEMES
from .diskspec import DiskSpec
from .errors import UsageError
from .exportspec import ConnectedDevice, ExportSpec
from .sizes import parse_size


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How a SPEC is opened."""

    resources: AsyncExitStack | None
    """Takes what has to be closed after the device is unmounted, such as connections; None: the
    device's ``unmount()`` is to close it."""
    read_only: bool = False
    """Whether the device must not be changed."""
    block_size: int | None = None
    """Bytes of a block, as ``--block-size`` gives them; None where it is not given."""
    shared: bool = False
    """Whether several processes open the same SPEC and write to it."""
    any_part: bool = False
    """Whether a shared file gets blocks of one byte where no block size is given."""
    list_contexts: bool = False
    """Whether a server is asked which metadata contexts its export has."""


Opener = Callable[[str, OpenOptions], Awaitable[BlockDevice]]
"""Opens the device of a whole SPEC."""

Creator = Callable[[str, BlockDevice], Awaitable[BlockDevice]]
"""Makes what a SPEC names, as large as a source; raises FileExistsError if a file is there."""


# Openers, one for each kind of SPEC


async def _open_memory(spec: str, options: OpenOptions) -> BlockDevice:
    spec, block_size = split_block_size(spec, options.block_size)
    where, mark, query = spec.partition("?")
    if mark:
        raise _unknown_options(spec, query)
    size = parse_size(_after_scheme(where))
    if block_size is None:
        # The largest blocks that the size allows.
        block_size = min(size & -size, 4096)
        block_size = block_size if block_size >= 512 else 4096
    try:
        device = MemoryDevice(size, block_size=block_size)
    except ValueError as exc:
        raise UsageError(f"memory:{size}: {exc}") from None
    return _read_only(device) if options.read_only else device


async def _open_file(spec: str, options: OpenOptions) -> BlockDevice:
    spec, block_size = split_block_size(spec, options.block_size)
    if options.any_part and block_size is None:
        block_size = 1
    path = parse_path(_after_scheme(spec))
    try:
        return FileDevice(
            path,
            block_size=block_size,
            read_only=options.read_only,
            multi_conn=options.shared,
        )
    except FileNotFoundError:
        where, mark, query = path.rpartition("?")
        is_there = await asyncio.to_thread(os.path.exists, where)
        if mark and is_there:
            raise _unknown_options(spec, query) from None
        raise


async def _open_disk(spec: str, options: OpenOptions) -> BlockDevice:
    """Open a disk in an object store, or make it if the SPEC has ``size=`` and there is none."""
    disk = DiskSpec.parse(spec)
    block_size = _agreed(spec, disk.block_size, options.block_size)
    device = await disk.open(read_only=options.read_only, block_size=block_size)
    return await _in_blocks(device, block_size)


async def _open_http(spec: str, options: OpenOptions) -> BlockDevice:
    spec, block_size = split_block_size(spec, options.block_size)
    return await HTTPDevice.open(spec, block_size=block_size)


async def _open_nbd(spec: str, options: OpenOptions) -> BlockDevice:
    uri, block_size = split_block_size(spec, options.block_size)
    export = ExportSpec.parse(uri)
    async with AsyncExitStack() as connection:
        connected = export.connected(list_contexts=options.list_contexts)
        remote = await connection.enter_async_context(connected)
        device = await _in_blocks(_read_only(remote) if options.read_only else remote, block_size)
        if options.resources is None:
            return ConnectedDevice(device, connection.pop_all())
        await options.resources.enter_async_context(connection.pop_all())
        return device


async def _open_attribute(spec: str, options: OpenOptions) -> BlockDevice:
    spec, block_size = split_block_size(spec, options.block_size)
    where, _, attribute = spec.rpartition(":")
    is_uri = "://" in spec and not where.endswith(".py")
    if is_uri or not where.strip(".") or (where.startswith(".") and not where.endswith(".py")):
        raise _no_module(spec)
    device = await load_attribute(where, attribute)
    return await _in_blocks(_read_only(device) if options.read_only else device, block_size)


# Creators, for the target of `aiovblk copy`


async def _create_file(spec: str, source: BlockDevice) -> BlockDevice:
    return FileDevice.create(parse_path(_after_scheme(spec)), source.size)


async def _create_disk(spec: str, source: BlockDevice) -> BlockDevice:
    """Open the disk if there is one, else make it."""
    # What is copied was made for sectors of this size; no disk has sectors below 512 bytes.
    block_size = max(source.block_size, 512)
    return await DiskSpec.parse(spec).open(size=source.size, block_size=block_size)


# Locations, which caches and overlays compare


def _attribute_location(spec: str) -> str:
    where, _, attribute = spec.rpartition(":")
    file = where if where.endswith(".py") else getattr(sys.modules.get(where), "__file__", None)
    return f"{os.path.realpath(file or where)}:{attribute}"


def _memory_location(spec: str) -> str:
    return f"memory {secrets.token_hex(16)}"  # other memory each time


def _nbd_location(spec: str) -> str:
    return ExportSpec.parse(split_block_size(spec)[0]).location()


@dataclass(frozen=True, slots=True)
class Scheme:
    """What opens a SPEC of one scheme, and what such a SPEC may be combined with."""

    open: Opener
    any_case: bool = False
    """Whether it may be written in capitals, as the schemes of URLs may (RFC 3986, 3.1)."""
    create: Creator | None = None
    """How `aiovblk copy` makes a target that does not exist; None: the target has to exist."""
    is_stored: bool = False
    """Whether it is a disk in an object store, which can be described, resized and deleted."""
    reopens: bool = False
    """Whether opening it once more, read-only, is cheap and has no effect, so that a mount with
    workers can check its sectors first."""
    location: Callable[[str], str] = _attribute_location
    """Where the device is, for what is kept of it in files, unless its class has an identity."""


_DISK = Scheme(_open_disk, create=_create_disk, is_stored=True)
_HTTP = Scheme(_open_http, any_case=True)
_NBD = Scheme(_open_nbd, any_case=True, location=_nbd_location)

SCHEMES: dict[str, Scheme] = {
    "memory": Scheme(_open_memory, location=_memory_location),
    "file": Scheme(_open_file, create=_create_file, reopens=True),
    **dict.fromkeys(DISK_SCHEMES, _DISK),  # folder, s3, gs, az, ...
    **dict.fromkeys(HTTP_SCHEMES, _HTTP),  # http, https
    **dict.fromkeys(NBD_SCHEMES, _NBD),  # nbd, nbds, nbd+unix, nbds+unix
}
"""Every scheme of a SPEC; a SPEC with another one is ``module:attribute``, :data:`ATTRIBUTE`."""

ATTRIBUTE = Scheme(_open_attribute)


def find_scheme(spec: str) -> Scheme:
    """Look up what opens a SPEC, by the word before its first colon."""
    name = spec.partition(":")[0]
    if name in SCHEMES:
        return SCHEMES[name]
    found = SCHEMES.get(name.lower(), ATTRIBUTE)
    return found if found.any_case else ATTRIBUTE


@asynccontextmanager
async def open_spec(
    spec: str,
    *,
    read_only: bool = False,
    block_size: int | None = None,
    list_contexts: bool = False,
) -> AsyncIterator[BlockDevice]:
    """Open the device that a SPEC names; the caller unmounts it before the block is left.

    Connections that the device needs are closed when the block is left.

    Args:
        spec: ``memory:SIZE``, ``file:PATH``, ``s3://BUCKET/FOLDER`` and others (see
            :data:`SCHEMES`), ``package.module:attribute`` or ``path/to/file.py:attribute``.
            ``?block_size=BYTES`` may follow.
        read_only: whether the device must not be changed.
        block_size: bytes of a block, if the SPEC does not say it.
        list_contexts: whether to ask the server of an export for its metadata contexts.

    Raises:
        SpecError: there is no such device. What the user's own code raises comes out as it is.
        UsageError: it is no SPEC.
        OSError, ValueError: what it names cannot be used as a disk.

    """
    async with AsyncExitStack() as resources:
        options = OpenOptions(resources, read_only, block_size, list_contexts=list_contexts)
        yield await _open(spec, options)


async def load_device(
    spec: str, *, read_only: bool = False, block_size: int | None = None
) -> BlockDevice:
    """Open the device that a SPEC names; its ``unmount()`` closes everything that it needs.

    Arguments and exceptions: see :func:`open_spec`.
    """
    return await _open(spec, OpenOptions(None, read_only, block_size))


async def device_for_worker(
    spec: str,
    *,
    read_only: bool = False,
    block_size: int | None = None,
    any_part: bool = False,
) -> BlockDevice:
    """Open the device that a SPEC names in one of several worker processes.

    Its ``unmount()`` closes everything that it needs.

    Args:
        spec: see :func:`open_spec`.
        read_only: whether the device must not be changed.
        block_size: bytes of a block, if the SPEC does not say it.
        any_part: whether the blocks of a file are bytes where no block size is given, so that no
            two processes change parts of the same one.

    """
    options = OpenOptions(None, read_only, block_size, shared=True, any_part=any_part)
    return await _open(spec, options)


async def _open(spec: str, options: OpenOptions) -> BlockDevice:
    if ":" not in spec:
        raise _no_spec(spec)
    return await find_scheme(spec).open(spec, options)


# Block sizes


def split_block_size(spec: str, other: int | None = None) -> tuple[str, int | None]:
    """Take ``block_size=`` out of the query of a SPEC; the rest of the query stays as it is.

    Args:
        spec: ``file:PATH?block_size=4096``, ``https://HOST/FILE?key=value&block_size=4096``.
        other: bytes that ``--block-size`` gives.

    Returns:
        The SPEC without it, and the bytes that either gives.

    Raises:
        UsageError: it is no size of a block, or the two differ.

    """
    is_url = "://" in spec
    # A path may have question marks.
    where, mark, query = spec.partition("?") if is_url else spec.rpartition("?")
    fields = query.split("&") if mark else []
    found = [field for field in fields if field.startswith(_BLOCK_SIZE)]
    if not found:
        return spec, other
    rest = [field for field in fields if field not in found]
    if len(found) > 1:
        raise UsageError(f"{_shown(spec)} has block_size= twice")
    if rest and not is_url:
        raise _unknown_options(spec, ", ".join(rest))
    size = parse_size(found[0].removeprefix(_BLOCK_SIZE))
    try:
        check_block_size(size)
    except ValueError as exc:
        raise UsageError(f"{_shown(spec)}: {exc}") from None
    return "?".join([where, "&".join(rest)] if rest else [where]), _agreed(spec, size, other)


_BLOCK_SIZE = "block_size="


def _agreed(spec: str, in_spec: int | None, option: int | None) -> int | None:
    if None not in (in_spec, option) and in_spec != option:
        raise UsageError(
            f"{_shown(spec)} says block_size={in_spec}, and --block-size says {option}"
        )
    return option if in_spec is None else in_spec


async def _in_blocks(device: BlockDevice, block_size: int | None) -> BlockDevice:
    """Give the device another block size if one is asked for; unmount it if that fails."""
    if block_size is None or block_size == device.block_size:
        return device
    try:
        return BlockSize(device, block_size)
    except BaseException:
        await device.unmount()
        raise


def _read_only(device: BlockDevice) -> BlockDevice:
    device.read_only = True
    return device


# Parts of SPECs, and errors


def _after_scheme(spec: str) -> str:
    return spec.partition(":")[2]


def parse_path(text: str) -> str:
    """Return the path of ``file:PATH``.

    Raises:
        UsageError: it is empty.

    """
    if not text:
        raise UsageError("'file:' names no file; write file:PATH")
    return text


def _unknown_options(spec: str, options: str) -> UsageError:
    return UsageError(f"{_shown(spec)} has unknown options ({options}); there is: block_size")


def _shown(spec: str) -> str:
    return repr(redact_url(without_password(spec)))


def _no_spec(spec: str) -> UsageError:
    if "://" not in spec and (
        spec.startswith(("/", ".", "~")) or "." in spec or os.path.exists(spec)
    ):
        return UsageError(f"{spec!r} is no SPEC; for a file, write file:{spec}")
    return UsageError(
        f"{spec!r} is no SPEC; write memory:SIZE, file:PATH, nbd://HOST/EXPORT,"
        " s3://BUCKET/FOLDER, folder:PATH, https://HOST/FILE, package.module:attribute or"
        " file.py:attribute"
    )


def _no_module(spec: str) -> UsageError:
    if os.path.exists(spec) or "://" in spec:  # a name with a colon; an unknown scheme
        return _no_spec(spec)
    return UsageError(
        f"{spec!r} names no module; write package.module:attribute or file.py:attribute"
    )
