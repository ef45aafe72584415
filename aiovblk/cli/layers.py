"""Put a cache and an overlay on a device: ``--cache``, ``--overlay``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import get_args

from ..device import BlockDevice
from ..storage import BlockSize, Cache, FileDevice, Overlay
from ..storage.cache import Policy
from . import values
from .contents import base_of, contents_of
from .errors import SpecError, UsageError
from .sizes import format_size
from .spec import open_spec

CACHE_POLICY: Policy = "write-through"


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers on a device: first the cache, on top of it the overlay."""

    overlay: str | None
    """The file that takes all writes; None for no overlay."""
    cache: int | None
    """Bytes; None for no cache."""
    cache_path: str | None
    """The file of the cache; None for memory."""
    cache_policy: Policy

    @classmethod
    def of(cls, arguments: Namespace) -> Layers:
        """Read the layers from a command line.

        Raises:
            UsageError: the options do not fit together.

        """
        cache, policy = arguments.cache, arguments.cache_policy
        layers = cls(arguments.overlay, cache, arguments.cache_path, policy or CACHE_POLICY)
        for option, value in (("--cache-path", layers.cache_path), ("--cache-policy", policy)):
            if value is not None and cache is None:
                raise UsageError(f"cache size missing: add --cache SIZE to {option}")
        if arguments.workers is not None and (layers.overlay is not None or cache is not None):
            raise UsageError(
                "no --overlay, no --cache with --workers: each worker would have its own"
            )
        return layers

    async def apply(self, device: BlockDevice, spec: str) -> BlockDevice:
        """Put the layers on a device; unmount it if that fails."""
        below = device
        try:
            source = _source_of(device)
            if self.cache is not None:
                below = await self._cached(device, self.cache, contents_of(source, spec))
            if self.overlay is not None:
                return await Overlay.file(below, self.overlay, identity=base_of(source))
        except BaseException:
            await below.unmount()
            raise
        return below

    async def _cached(
        self, device: BlockDevice, size: int, contents: Callable[[], str]
    ) -> BlockDevice:
        if self.cache_path is None:
            return Cache(device, size=size, policy=self.cache_policy)
        try:
            store = FileDevice.create(self.cache_path, size)
        except FileExistsError:
            store = FileDevice(self.cache_path)
        try:
            if store.size != size:
                raise SpecError(
                    f"{self.cache_path} has {format_size(store.size)}, --cache says"
                    f" {format_size(size)}: name another file, or delete this one if it is a cache"
                    " that is not needed"
                )
            return Cache(device, store, policy=self.cache_policy, identity=contents)
        except BaseException:
            await store.unmount()
            raise


def _source_of(device: BlockDevice) -> BlockDevice:
    """Return the device that the SPEC names, below a layer for the block size."""
    return device.inner if isinstance(device, BlockSize) else device


@asynccontextmanager
async def open_stack(
    spec: str, layers: Layers, *, read_only: bool = False, block_size: int | None = None
) -> AsyncIterator[BlockDevice]:
    """Open the device that a SPEC names, with layers on it; see :func:`.spec.open_spec`."""
    below = read_only or layers.overlay is not None
    async with open_spec(spec, read_only=below, block_size=block_size) as device:
        stack = await layers.apply(device, spec)
        if read_only:
            stack.read_only = True
        yield stack


def add_layers(parser: ArgumentParser) -> None:
    """Add the options for a cache and an overlay."""
    parser.add_argument(
        "--overlay",
        type=values.text,
        metavar="PATH",
        help="write to this file, and leave what SPEC names unchanged (copy-on-write)",
    )
    parser.add_argument(
        "--cache",
        type=values.size,
        metavar="SIZE",
        help="cache this much of the device in memory, or in a file",
    )
    parser.add_argument(
        "--cache-path", type=values.text, metavar="PATH", help="the file of the cache"
    )
    parser.add_argument(
        "--cache-policy",
        choices=get_args(Policy),
        help=f"how writes are cached (default {CACHE_POLICY})",
    )
