"""``aiovblk copy``: from one device to another."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..device import BlockDevice
from ..storage import FileDevice, copy
from .disks import SCHEMES as DISK_SCHEMES
from .disks import DiskSpec
from .progress import progress
from .spec import device_of, parse_path


async def copy_device(arguments: Namespace) -> None:
    """Copy ``arguments.source`` to ``arguments.target``, whose flush ends it."""
    async with (
        device_of(arguments.source, read_only=True) as source,
        _unmounted(source),
        _target(arguments.target, source) as target,
        _unmounted(target),
    ):
        with progress(source.size, "B", shown=arguments.progress) as advance:
            await copy(source, target, requests=arguments.requests, advance=advance)


@asynccontextmanager
async def _target(spec: str, source: BlockDevice) -> AsyncIterator[BlockDevice]:
    created = await _create(spec, source)
    if created is not None:
        yield created
        return
    async with device_of(spec) as target:
        yield target


async def _create(spec: str, source: BlockDevice) -> BlockDevice | None:
    """What ``spec`` names, if that is a file, or a disk in a store, that is not there yet."""
    kind, _, rest = spec.partition(":")
    try:
        if kind == "file":
            return FileDevice.create(parse_path(rest), source.size)
        if kind in DISK_SCHEMES:
            return await DiskSpec.parse(spec).open(size=source.size)
    except FileExistsError:
        pass
    return None


@asynccontextmanager
async def _unmounted(device: BlockDevice) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await device.unmount()
