"""``aiovblk copy``: copy one device to another."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..device import BlockDevice
from ..storage import copy
from ..storage.copying import REQUESTS, check_source
from .layers import LAYER_HELP, Layers, add_layer, layers_help, open_stack
from .options import SPEC_HELP, add_loop, add_number, add_progress
from .parser import CommandParser
from .progress import progress
from .runner import async_command
from .spec import find_scheme


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = "%(prog)s [OPTION...] SOURCE TARGET"
    parser.description = (
        "Copy a device to the beginning of another. What reads as zeroes becomes holes, where the "
        "target supports them. A file, or a disk in an object store, that does not exist is made."
    )
    parser.add_argument("source", metavar="SOURCE", help=f"the SPEC that is read: {SPEC_HELP}")
    parser.add_argument(
        "target", metavar="TARGET", help="the SPEC that is written to, of the same kinds"
    )
    add_number(parser, "--requests", REQUESTS, "requests in flight")
    add_progress(parser)
    add_loop(parser)
    group = parser.add_argument_group("layers", layers_help())
    add_layer(group, "--layer", f"of SOURCE: {LAYER_HELP}")
    add_layer(group, "--target-layer", "the same for TARGET")
    parser.show_examples(
        ("import an image into a bucket", "aiovblk copy file:disk.raw s3://bucket/disk"),
        (
            "export a snapshot of it, at 20 MiB/s at most",
            "aiovblk copy 's3://bucket/disk?snapshot=monday' file:disk.raw --layer limit:rate=20M",
        ),
    )
    parser.set_defaults(command=async_command(copy_device))


async def copy_device(arguments: Namespace) -> None:
    """Copy ``arguments.source`` to ``arguments.target``; a flush of the target ends it."""
    source_layers = Layers(tuple(arguments.layer or ()))
    target_layers = Layers(tuple(arguments.target_layer or ()))
    async with (
        open_stack(arguments.source, source_layers, read_only=True) as source,
        unmounted(source),
        _checked(source),
        open_target(arguments.target, source, target_layers) as target,
        unmounted(target),
    ):
        with progress(source.size, "B", shown=arguments.progress) as advance:
            await copy(source, target, requests=arguments.requests, advance=advance)


@asynccontextmanager
async def _checked(source: BlockDevice) -> AsyncIterator[None]:
    """Refuse an unusable source before a target is made for it."""
    check_source(source)
    yield


@asynccontextmanager
async def open_target(spec: str, source: BlockDevice, layers: Layers) -> AsyncIterator[BlockDevice]:
    """Make the target if that can be done and it does not exist; else open it.

    Args:
        spec: of the target.
        source: has the size and the block size of one that is made.
        layers: on the target.

    """
    created = await _create(spec, source)
    if created is not None:
        yield await layers.apply(created, spec)
        return
    async with open_stack(spec, layers) as target:
        yield target


async def _create(spec: str, source: BlockDevice) -> BlockDevice | None:
    create = find_scheme(spec).create
    if create is None or ":" not in spec:
        return None
    try:
        return await create(spec, source)
    except FileExistsError:
        return None


@asynccontextmanager
async def unmounted(device: BlockDevice) -> AsyncIterator[None]:
    """Unmount the device when the block is left."""
    try:
        yield
    finally:
        await device.unmount()
