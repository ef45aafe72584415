"""The layers that the command line can put on a device: a table of them, and what applies each.

A layer is written ``NAME`` or ``NAME:OPTION=VALUE,OPTION=VALUE``. A new one is a function and an
entry of :data:`KINDS`. :class:`~aiovblk.storage.Metered` is not there, since it only counts for a
program; ``aiovblk top`` and ``aiovblk.metrics`` count without it.
"""

from __future__ import annotations

import errno
from argparse import ArgumentTypeError
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from ..arguments import check_block_size
from ..device import BlockDevice
from ..storage import (
    BlockSize,
    Cache,
    Fault,
    Faults,
    FileDevice,
    Mirror,
    Overlay,
    Partition,
    Rate,
    RateLimited,
    ReadOnly,
    Retry,
    Tracked,
)
from ..storage.cache import Policy
from ..storage.metered import COMMANDS
from ..storage.tracked import MAX_GRANULARITY
from . import values
from .contents import Contents
from .errors import SpecError
from .sizes import format_size
from .spec import load_device

Settings = Mapping[str, Any]
"""The options of a layer, by name, parsed."""

CACHE_POLICY: Policy = "write-through"


@dataclass(frozen=True, slots=True)
class LayerKind:
    """A kind of layer: what its options are, and what it may be combined with."""

    apply: Callable[[BlockDevice, Settings, Contents], Awaitable[BlockDevice]]
    """Puts it on a device, of whose contents the last argument knows."""
    help: str
    options: Mapping[str, Callable[[str], object]] = field(default_factory=dict)
    """What parses the value of each option."""
    required: tuple[str, ...] = ()
    """Options of which one must be given."""
    for_workers: bool = True
    """Whether each of several worker processes may have one of its own."""
    reads_only: bool = False
    """Whether it never writes to the device below."""
    changes_contents: bool = False
    """Whether it shows other bytes than the device below has at the same place."""


async def _cache(device: BlockDevice, settings: Settings, contents: Contents) -> BlockDevice:
    size, path = settings["size"], settings.get("path")
    policy = settings.get("policy", CACHE_POLICY)
    if path is None:
        return Cache(device, size=size, policy=policy)
    try:
        store = FileDevice.create(path, size)
    except FileExistsError:
        store = FileDevice(path)
    try:
        if store.size != size:
            raise SpecError(
                f"{path} has {format_size(store.size)}, and the cache is to have"
                f" {format_size(size)}: name another file, or delete this one if it is a cache that"
                " is not needed"
            )
        return Cache(device, store, policy=policy, identity=contents.identity)
    except BaseException:
        await store.unmount()
        raise


async def _overlay(device: BlockDevice, settings: Settings, contents: Contents) -> BlockDevice:
    return await Overlay.file(device, settings["path"], identity=contents.base)


async def _tracked(device: BlockDevice, settings: Settings, contents: Contents) -> BlockDevice:
    return Tracked(device, settings["path"], granularity=settings.get("granularity"))


async def _read_only(device: BlockDevice, settings: Settings, contents: Contents) -> BlockDevice:
    return ReadOnly(device)


async def _block_size(device: BlockDevice, settings: Settings, contents: Contents) -> BlockDevice:
    return BlockSize(device, settings["size"])


async def _partition(device: BlockDevice, settings: Settings, contents: Contents) -> BlockDevice:
    offset = settings.get("offset", 0)
    return Partition(device, offset, settings.get("size", device.size - offset))


async def _mirror(device: BlockDevice, settings: Settings, contents: Contents) -> BlockDevice:
    """Mirror the device on another, which is copied anew first: nothing says what it has missed."""
    other = await load_device(settings["with"])
    in_sync = settings.get("in-sync", False)
    try:
        mirror = Mirror(device, other, stale=() if in_sync else [other])
        if not in_sync:
            await mirror.resync(other)
    except BaseException:
        await other.unmount()
        raise
    return mirror


async def _retry(device: BlockDevice, settings: Settings, contents: Contents) -> BlockDevice:
    options = {name.replace("-", "_"): value for name, value in settings.items()}
    return Retry(device, **options)


async def _limit(device: BlockDevice, settings: Settings, contents: Contents) -> BlockDevice:
    limited = RateLimited(device)
    set_limits(limited, settings)
    return limited


def set_limits(limited: RateLimited, settings: Settings) -> None:
    """Set the limits of a layer, also of one that is in use, to what its options say."""

    def rate(prefix: str) -> Rate | None:
        most, requests = settings.get(f"{prefix}rate"), settings.get(f"{prefix}requests")
        if most is None and requests is None:
            return None
        return Rate(most, requests, settings.get("burst", Rate().burst))

    limited.limit = rate("")
    limited.read_limit = rate("read-")
    limited.write_limit = rate("write-")


async def _faults(device: BlockDevice, settings: Settings, contents: Contents) -> BlockDevice:
    fault = {name: value for name, value in settings.items() if name != "seed"}
    return Faults(device, Fault(**fault), seed=settings.get("seed", 0))


def _error_number(text: str) -> int:
    try:
        number: int = getattr(errno, text.upper())
    except AttributeError:
        raise ArgumentTypeError(
            f"must be the name of an error, such as EIO, not {text!r}"
        ) from None
    return number


def _probability(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return number


def _block_bytes(text: str) -> int:
    number = values.size(text)
    try:
        check_block_size(number, name="it")
    except ValueError as exc:
        raise ArgumentTypeError(str(exc).removeprefix("it ")) from None
    return number


_RATES = ("rate", "read-rate", "write-rate")
_REQUESTS = ("requests", "read-requests", "write-requests")

KINDS: dict[str, LayerKind] = {
    "retry": LayerKind(
        _retry,
        "repeat requests that failed for a while",
        {
            "attempts": values.count(),
            "delay": values.pause,
            "longest-delay": values.pause,
        },
    ),
    "limit": LayerKind(
        _limit,
        "limit bytes and requests per second, with a burst of so many seconds",
        {
            **dict.fromkeys(_RATES, values.size),
            **dict.fromkeys(_REQUESTS, values.count()),
            "burst": values.pause,
        },
        required=(*_RATES, *_REQUESTS),
        for_workers=False,
    ),
    "cache": LayerKind(
        _cache,
        "cache it in memory, or in a file",
        {
            "size": values.size,
            "path": values.text,
            "policy": values.choice(*get_args(Policy)),
        },
        required=("size",),
        for_workers=False,
    ),
    "overlay": LayerKind(
        _overlay,
        "write to a file, and leave what is below unchanged (copy-on-write)",
        {"path": values.text},
        required=("path",),
        for_workers=False,
        reads_only=True,
        changes_contents=True,
    ),
    "tracked": LayerKind(
        _tracked,
        "record in a file which blocks are written; see `aiovblk bitmap`",
        {"path": values.text, "granularity": values.block_size(maximum=MAX_GRANULARITY)},
        required=("path",),
        for_workers=False,
    ),
    "read-only": LayerKind(_read_only, "refuse all writes", reads_only=True),
    "block-size": LayerKind(
        _block_size,
        "have blocks of another size",
        {"size": _block_bytes},
        required=("size",),
    ),
    "partition": LayerKind(
        _partition,
        "be a part of it",
        {"offset": values.offset, "size": values.size},
        required=("offset", "size"),
        changes_contents=True,
    ),
    "mirror": LayerKind(
        _mirror,
        "write to another SPEC as well, which is made equal first; in-sync=yes if it is",
        {"with": values.text, "in-sync": values.flag},
        required=("with",),
        for_workers=False,
    ),
    "faults": LayerKind(
        _faults,
        "fail or delay requests on purpose, for tests",
        {
            "command": values.choice(*COMMANDS),
            "error": _error_number,
            "delay": values.pause,
            "rate": _probability,
            "begin": values.offset,
            "end": values.size,
            "skip": values.count(minimum=0),
            "times": values.count(),
            "late": values.flag,
            "seed": values.count(minimum=0),
        },
        required=("error", "delay"),
    ),
}
"""Every layer of the command line, by its name there."""
