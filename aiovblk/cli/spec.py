"""From the SPEC of a command line to a device."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType

from ..client import connect
from ..device import BlockDevice
from ..protocol.uri import SCHEMES
from ..storage import FileDevice, HTTPDevice, MemoryDevice
from ..storage.web import SCHEMES as WEB_SCHEMES
from .diskspec import SCHEMES as DISK_SCHEMES
from .diskspec import DiskSpec
from .units import SpecError, parse_size


@asynccontextmanager
async def device_of(spec: str, *, read_only: bool = False) -> AsyncIterator[BlockDevice]:
    """The device that ``spec`` names, as :func:`load_device`, or the URI of an NBD export.

    Whatever else it holds is let go when the block is left; the device is the caller's to unmount.
    """
    if spec.partition(":")[0].lower() in SCHEMES:
        async with connect(spec) as remote:
            yield _read_only(remote) if read_only else remote
    else:
        yield await load_device(spec, read_only=read_only)


async def device_for_worker(
    spec: str, *, read_only: bool = False, block_size: int | None = None
) -> BlockDevice:
    """The device that ``spec`` names, in one of several processes; it lets go of itself.

    Args:
        spec: as for :func:`device_of`.
        read_only: whether it must not be changed.
        block_size: bytes of a block of a file; by default the largest that fits.

    """
    kind, _, rest = spec.partition(":")
    if kind == "file":
        path = parse_path(rest)
        return FileDevice(path, block_size=block_size, read_only=read_only, multi_conn=True)
    stack = AsyncExitStack()
    device = await stack.enter_async_context(device_of(spec, read_only=read_only))
    unmount = device.unmount

    async def unmount_and_let_go() -> None:
        async with stack:
            await unmount()

    device.unmount = unmount_and_let_go  # type: ignore[method-assign]  # of this one only
    return device


async def load_device(spec: str, *, read_only: bool = False) -> BlockDevice:
    """The device that ``spec`` names.

    Args:
        spec: ``memory:SIZE``, ``file:PATH``, ``https://HOST/FILE``, ``s3://BUCKET/FOLDER`` and its
            kin (see :mod:`.diskspec`), ``package.module:attribute`` or
            ``path/to/file.py:attribute``, where the attribute is a BlockDevice, a subclass of it,
            or a function that returns one.
        read_only: whether it must not be changed.

    Raises:
        SpecError: there is no such thing, or it is no device. What the user's own code raises
            comes out as it is.
        OSError, ValueError: the file of ``file:PATH`` cannot be used as a disk.

    """
    kind, separator, rest = spec.partition(":")
    if not separator:
        raise SpecError(
            f"{spec!r} is no SPEC; write memory:SIZE, file:PATH, nbd://HOST/EXPORT,"
            " s3://BUCKET/FOLDER, folder:PATH, https://HOST/FILE, package.module:attribute or"
            " file.py:attribute"
        )
    if kind == "file":
        return FileDevice(parse_path(rest), read_only=read_only)
    if kind.lower() in WEB_SCHEMES:
        return await HTTPDevice.open(spec)
    if kind in DISK_SCHEMES:
        return await DiskSpec.parse(spec).open(read_only=read_only)
    device = _memory(parse_size(rest)) if kind == "memory" else await _load_object(spec)
    return _read_only(device) if read_only else device


def _memory(size: int) -> BlockDevice:
    # The largest blocks that the size allows.
    block_size = min(size & -size, 4096)
    return MemoryDevice(size, block_size=block_size) if block_size >= 512 else MemoryDevice(size)


def _read_only(device: BlockDevice) -> BlockDevice:
    device.read_only = True
    return device


def parse_path(text: str) -> str:
    """The path of ``file:PATH``.

    Raises:
        SpecError: there is none.

    """
    if not text:
        raise SpecError("'file:' names no file; write file:PATH")
    return text


async def _load_object(spec: str) -> BlockDevice:
    where, _, attribute = spec.rpartition(":")
    if not where.strip(".") or (where.startswith(".") and not where.endswith(".py")):
        raise SpecError(
            f"{spec!r} names no module; write package.module:attribute or file.py:attribute"
        )
    found: object = _load_module(where)
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise SpecError(f"{where} has no attribute {attribute!r}") from None
    if not isinstance(found, BlockDevice) and callable(found):
        found = found()
    if inspect.isawaitable(found):
        found = await found
    if not isinstance(found, BlockDevice):
        raise SpecError(f"{spec} is no BlockDevice but {found!r}")
    return found


def _load_module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")  # as `python -m` does
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as exc:
            if exc.name is None or not f"{where}.".startswith(f"{exc.name}."):
                raise  # a module that the user's module wants
            raise SpecError(f"there is no module {exc.name!r}") from None
    path = Path(where).resolve()
    if not path.is_file():
        raise SpecError(f"there is no file {where}")
    sys.path.insert(0, str(path.parent))  # as `python file.py` does
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # a name that ends in .py has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
