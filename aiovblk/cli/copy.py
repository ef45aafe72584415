"""``aiovblk copy``: from one device to another."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..device import BlockDevice
from ..storage import FileDevice, copy
from ..storage.copying import REQUESTS, check_source
from .diskspec import SCHEMES as DISK_SCHEMES
from .diskspec import DiskSpec
from .options import SPEC_HELP, add_loop, add_number, add_progress
from .progress import progress
from .runner import async_command
from .spec import open_spec, parse_path


def configure(parser: ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Copy a device to the beginning of another. What reads as zeroes becomes holes, where the "
        "target can have some. A file that does not exist is made."
    )
    parser.add_argument("source", metavar="SPEC", help=SPEC_HELP)
    parser.add_argument("target", metavar="SPEC")
    add_number(parser, "--requests", REQUESTS, "requests in flight")
    add_progress(parser)
    add_loop(parser)
    parser.set_defaults(command=async_command(copy_device))


async def copy_device(arguments: Namespace) -> None:
    """Copy ``arguments.source`` to ``arguments.target``, whose flush ends it."""
    async with (
        open_spec(arguments.source, read_only=True) as source,
        _unmounted(source),
        _checked(source),
        _target(arguments.target, source) as target,
        _unmounted(target),
    ):
        with progress(source.size, "B", shown=arguments.progress) as advance:
            await copy(source, target, requests=arguments.requests, advance=advance)


@asynccontextmanager
async def _checked(source: BlockDevice) -> AsyncIterator[None]:
    """Refuse the source before a target is made for it."""
    check_source(source)
    yield


@asynccontextmanager
async def _target(spec: str, source: BlockDevice) -> AsyncIterator[BlockDevice]:
    created = await _create(spec, source)
    if created is not None:
        yield created
        return
    async with open_spec(spec) as target:
        yield target


async def _create(spec: str, source: BlockDevice) -> BlockDevice | None:
    """What ``spec`` names, if that is a file, or a disk in a store, that is not there yet."""
    kind, _, rest = spec.partition(":")
    try:
        if kind == "file":
            return FileDevice.create(parse_path(rest), source.size)
        if kind in DISK_SCHEMES:
            # What is copied was made for sectors of this size; smaller ones no disk has.
            block_size = max(source.block_size, 512)
            return await DiskSpec.parse(spec).open(size=source.size, block_size=block_size)
    except FileExistsError:
        pass
    return None


@asynccontextmanager
async def _unmounted(device: BlockDevice) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await device.unmount()
