"""``aiovblk copy``: from one device to another."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from ..device import BlockDevice
from ..storage import FileDevice, copy
from .spec import device_of, parse_path


async def copy_device(arguments: Namespace) -> None:
    """Copy ``arguments.source`` to ``arguments.target``, whose flush ends it."""
    async with (
        device_of(arguments.source, read_only=True) as source,
        _unmounted(source),
        _target(arguments.target, source) as target,
        _unmounted(target),
    ):
        with _progress(source.size, shown=arguments.progress) as advance:
            await copy(source, target, requests=arguments.requests, advance=advance)


@asynccontextmanager
async def _target(spec: str, source: BlockDevice) -> AsyncIterator[BlockDevice]:
    created = _create(spec, source.size)
    if created is not None:
        yield created
        return
    async with device_of(spec) as target:
        yield target


def _create(spec: str, size: int) -> BlockDevice | None:
    """The file that ``spec`` names, if it names one that is not there yet."""
    kind, _, rest = spec.partition(":")
    try:
        return FileDevice.create(parse_path(rest), size) if kind == "file" else None
    except FileExistsError:
        return None


@asynccontextmanager
async def _unmounted(device: BlockDevice) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await device.unmount()


@contextmanager
def _progress(size: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # it comes with aiovblk[cli]
        yield lambda count: None
        return
    # On a terminal only, unless it is not wanted at all.
    disable = None if shown else True
    with tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, disable=disable) as bar:
        yield bar.update
