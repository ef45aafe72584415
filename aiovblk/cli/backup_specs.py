"""What the commands for backups take: the source, what holds the backups, what is restored into."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from ..client import connect
from ..device import BlockDevice
from ..protocol.uri import SCHEMES as NBD_SCHEMES
from ..storage import objects
from ..storage.backup import (
    BackupError,
    DeviceSource,
    DeviceTarget,
    DiskSource,
    FileTarget,
    ObjectTarget,
)
from ..storage.backup.sources import Source, identity_of_disk
from ..storage.backup.targets import Target
from ..storage.fsync import sync_directory_of
from .copy import open_target, unmounted
from .diskspec import DiskSpec, read_key
from .errors import UsageError
from .layers import Layers, open_stack
from .spec import find_scheme, parse_path, split_block_size

TARGET_HELP = """s3://BUCKET/FOLDER (gs, az; folder:PATH), which holds many backups, with
?compress=yes and ?chunk_size= where it does not exist; file:PATH, or nbd://HOST/EXPORT with
--state, which hold the newest"""

NO_KEY = "none"
"""In place of a key file: no encryption."""


@asynccontextmanager
async def open_source(arguments: Namespace) -> AsyncGenerator[Source, None]:
    """Open what is backed up."""
    spec, layers = arguments.spec, Layers(tuple(arguments.layer or ()))
    if find_scheme(spec).is_stored:
        disk = DiskSpec.parse(spec)
        if disk.snapshot is None:
            _check_disk_options(arguments)
            yield DiskSource(disk.url, key=read_key())
            return
        if not layers.layers:
            # A layer passes a snapshot on by its name, which another one may have had before.
            arguments.point = arguments.point or disk.snapshot
    identity = arguments.identity or await identify(spec)
    async with open_stack(spec, layers, read_only=True) as device, unmounted(device):
        yield DeviceSource(device, identity=identity, point=arguments.point)


def _check_disk_options(arguments: Namespace) -> None:
    """Refuse what is for devices of which no snapshot is taken.

    Raises:
        UsageError: such an option is given.

    """
    for name in ("point", "identity", "layer"):
        if getattr(arguments, name):
            raise UsageError(
                f"--{name} is not for a disk in an object store, of which a snapshot is taken; name"
                " one by ?snapshot=NAME to back that up"
            )


async def identify(spec: str) -> str:
    """Identify what a SPEC names, at each backup the same."""
    scheme = find_scheme(spec)
    if scheme.is_stored:
        try:
            found = await objects.describe(DiskSpec.parse(spec).url, key=read_key())
        except FileNotFoundError:
            return spec  # it is made
        return identity_of_disk(found.identity)
    if spec.startswith("file:"):
        return f"file {_path_of(spec)}"
    return scheme.location(spec)


@asynccontextmanager
async def open_backups(arguments: Namespace) -> AsyncGenerator[Target, None]:
    """Return the target that the command line names.

    Raises:
        UsageError: it cannot be one.

    """
    spec, folder = arguments.target, arguments.state
    scheme = spec.partition(":")[0].lower()
    if find_scheme(spec).is_stored:
        yield _object_target(arguments)
        return
    if arguments.backup_key not in (None, NO_KEY):
        raise UsageError("a file or an export is not encrypted; name a folder or a bucket instead")
    if scheme == "file":
        yield FileTarget(parse_path(spec[5:]), folder=folder)
    elif scheme in NBD_SCHEMES:
        if folder is None:
            raise UsageError(
                "an export cannot say by itself which backup it holds, nor change as a whole: add"
                " --state FOLDER, where that is kept on this machine"
            )
        async with connect(spec) as remote:
            yield DeviceTarget(remote, folder=folder)
    else:
        raise UsageError(
            f"{spec!r} cannot hold backups; write s3://BUCKET/FOLDER, folder:PATH, file:PATH or"
            " nbd://HOST/EXPORT"
        )


def _object_target(arguments: Namespace) -> ObjectTarget:
    disk = DiskSpec.parse(arguments.target)
    if arguments.state is not None:
        raise UsageError("--state is for a file or an export; a folder or a bucket needs none")
    if disk.snapshot is not None or disk.size is not None or disk.block_size is not None:
        raise UsageError(
            f"{arguments.target!r}: a target has the size and the blocks of its source, and --name"
            " names a backup; leave size=, block_size= and snapshot= out"
        )
    return ObjectTarget(
        disk.url,
        key=_backup_key(arguments.backup_key),
        chunk_size=disk.chunk_size,
        compress=disk.compress,
    )


def _backup_key(path: str | None) -> bytes | None:
    return None if path == NO_KEY else read_key(path)


@asynccontextmanager
async def open_restored(
    spec: str, target: Target, name: str, layers: Layers
) -> AsyncGenerator[BlockDevice, None]:
    """Open what is restored into; a new file gets its name when it is whole.

    Args:
        spec: names it.
        target: has the backup.
        name: of the backup, as large as which a new file or disk is made.
        layers: on what is restored into.

    """
    async with target.read(name) as reader:
        shape = _Shape(reader.size, reader.block_size)
    path = _path_of(spec) if spec.startswith("file:") else None
    if path is None or path.exists():
        async with open_target(spec, shape, layers) as device, unmounted(device):
            yield device
        return
    unfinished = path.with_name(f"{path.name}.restoring")
    _check_unfinished(unfinished, reader.size)
    async with open_target(f"file:{unfinished}", shape, layers) as device, unmounted(device):
        yield device
    unfinished.rename(path)
    sync_directory_of(path)


def _check_unfinished(path: Path, size: int) -> None:
    """Refuse what an interrupted restore has left if a backup of another size is restored now.

    Raises:
        BackupError: it has another size.

    """
    with suppress(FileNotFoundError):
        found = path.stat().st_size
        if found != size:
            raise BackupError(
                f"{path} has {found} bytes, and the backup {size}: it was left by a restore of"
                " another backup that was interrupted; delete it, and try again"
            )


def _path_of(spec: str) -> Path:
    """Return the path of a ``file:`` SPEC, whatever directory it was typed in."""
    return Path(os.path.realpath(parse_path(split_block_size(spec)[0][5:])))


class _Shape(BlockDevice):
    """The shape of a device that is to be made."""

    def __init__(self, size: int, block_size: int) -> None:
        self.block_size = block_size
        self.blocks = size // block_size
