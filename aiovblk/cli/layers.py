"""Layers that the command line puts on a device."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import get_args

from ..device import BlockDevice
from ..storage import Cache, FileDevice, Overlay
from ..storage.cache import Policy
from .contents import base_of, contents_of
from .spec import device_of
from .units import SpecError, parse_size


@dataclass(frozen=True, slots=True)
class Layers:
    """What lies on a device: first the cache, on that the overlay."""

    overlay: str | None
    """The file of what is written."""
    cache: int | None
    """Bytes."""
    cache_path: str | None
    """The file of the cache; None for memory."""
    cache_policy: Policy

    @classmethod
    def of(cls, arguments: Namespace) -> Layers:
        """Read them from a command line.

        Raises:
            SpecError: they do not go together.

        """
        cache = None if arguments.cache is None else parse_size(arguments.cache)
        layers = cls(arguments.overlay, cache, arguments.cache_path, arguments.cache_policy)
        if layers.cache_path is not None and layers.cache is None:
            raise SpecError("how large is the cache to be? Give --cache SIZE with --cache-path")
        if arguments.workers is not None and (layers.overlay is not None or cache is not None):
            raise SpecError("each worker would have layers of its own: no --overlay, no --cache")
        return layers

    async def put_on(self, device: BlockDevice, spec: str) -> BlockDevice:
        """Put them on a device, which is let go of if that fails."""
        below = device
        try:
            if self.cache is not None:
                below = await self._cached(device, self.cache, contents_of(device, spec))
            if self.overlay is not None:
                return await Overlay.file(below, self.overlay, identity=base_of(device))
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
                raise SpecError(f"{self.cache_path} has another size than --cache; delete it")
            return Cache(device, store, policy=self.cache_policy, identity=contents)
        except BaseException:
            await store.unmount()
            raise


@asynccontextmanager
async def stack_of(
    spec: str, layers: Layers, *, read_only: bool = False
) -> AsyncIterator[BlockDevice]:
    """The device that ``spec`` names, with layers on it; see :func:`.spec.device_of`."""
    below = read_only or layers.overlay is not None
    async with device_of(spec, read_only=below) as device:
        stack = await layers.put_on(device, spec)
        if read_only:
            stack.read_only = True
        yield stack


def add_layers(parser: ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--overlay",
        metavar="PATH",
        help="keep what is written in this file, and leave what SPEC names as it is",
    )
    parser.add_argument(
        "--cache", metavar="SIZE", help="keep this much of the device in memory, or in a file"
    )
    parser.add_argument("--cache-path", metavar="PATH", help="the file of the cache")
    parser.add_argument(
        "--cache-policy",
        choices=get_args(Policy),
        default="write-through",
        help="what is done with writes (default %(default)s)",
    )
