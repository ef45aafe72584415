"""From the SPEC of a command line to a device."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType

from ..arguments import check_block_size
from ..client import connect
from ..device import BlockDevice
from ..protocol.uri import SCHEMES, URI, without_password
from ..storage import BlockSize, FileDevice, HTTPDevice, MemoryDevice
from ..storage.http import SCHEMES as WEB_SCHEMES
from ..storage.http import redact_url
from .diskspec import SCHEMES as DISK_SCHEMES
from .diskspec import DiskSpec
from .sizes import SpecError, UsageError, parse_size


@asynccontextmanager
async def open_spec(
    spec: str, *, read_only: bool = False, block_size: int | None = None
) -> AsyncIterator[BlockDevice]:
    """The device that ``spec`` names, as :func:`load_device`, or the URI of an NBD export.

    Whatever else it holds is let go when the block is left; the device is the caller's to unmount.
    """
    if spec.partition(":")[0].lower() not in SCHEMES:
        yield await load_device(spec, read_only=read_only, block_size=block_size)
        return
    uri, block_size = split_block_size(spec, block_size)
    try:
        URI.parse(uri)
    except ValueError as exc:
        raise UsageError(str(exc)) from None
    async with connect(uri) as remote:
        yield await in_blocks(_read_only(remote) if read_only else remote, block_size)


async def device_for_worker(
    spec: str,
    *,
    read_only: bool = False,
    block_size: int | None = None,
    any_part: bool = False,
) -> BlockDevice:
    """The device that ``spec`` names, in one of several processes; it lets go of itself.

    Args:
        spec: as for :func:`open_spec`.
        read_only: whether it must not be changed.
        block_size: bytes; see :func:`load_device`.
        any_part: whether a file's blocks are bytes where no block size is asked for, so that no two
            processes change parts of the same one.

    """
    if spec.partition(":")[0] == "file":
        where, block_size = split_block_size(spec, block_size)
        path = parse_path(where.removeprefix("file:"))
        block_size = 1 if any_part and block_size is None else block_size
        return FileDevice(path, block_size=block_size, read_only=read_only, multi_conn=True)
    stack = AsyncExitStack()
    opening = open_spec(spec, read_only=read_only, block_size=block_size)
    device = await stack.enter_async_context(opening)
    unmount = device.unmount

    async def unmount_and_let_go() -> None:
        async with stack:
            await unmount()

    device.unmount = unmount_and_let_go  # type: ignore[method-assign]  # of this one only
    return device


async def load_device(
    spec: str, *, read_only: bool = False, block_size: int | None = None
) -> BlockDevice:
    """The device that ``spec`` names.

    Args:
        spec: ``memory:SIZE``, ``file:PATH``, ``https://HOST/FILE``, ``s3://BUCKET/FOLDER`` and its
            kin (see :mod:`.diskspec`), ``package.module:attribute`` or
            ``path/to/file.py:attribute``, where the attribute is a BlockDevice, a subclass of it,
            or a function that returns one. ``?block_size=BYTES`` may follow.
        read_only: whether it must not be changed.
        block_size: bytes of a block, if the SPEC does not say it.

    Raises:
        SpecError: there is no such thing, or it is no device. What the user's own code raises
            comes out as it is.
        UsageError: it is no SPEC.
        OSError, ValueError: the file of ``file:PATH`` cannot be used as a disk.

    """
    if ":" not in spec:
        raise _no_spec(spec)
    kind = spec.partition(":")[0]
    if kind in DISK_SCHEMES:
        disk = DiskSpec.parse(spec)
        block_size = _agreed(spec, disk.block_size, block_size)
        device = await disk.open(read_only=read_only, block_size=block_size)
        return await in_blocks(device, block_size)
    spec, block_size = split_block_size(spec, block_size)
    rest = spec.partition(":")[2]
    if kind == "file":
        return FileDevice(parse_path(rest), block_size=block_size, read_only=read_only)
    if kind.lower() in WEB_SCHEMES:
        return await HTTPDevice.open(spec, block_size=block_size)
    is_memory = kind == "memory"
    device = _memory(parse_size(rest), block_size) if is_memory else await _load_object(spec)
    return await in_blocks(_read_only(device) if read_only else device, block_size)


def split_block_size(spec: str, other: int | None = None) -> tuple[str, int | None]:
    """Take ``block_size=`` out of a SPEC's query, of which the rest stays as it is.

    Args:
        spec: ``file:PATH?block_size=4096``, ``https://HOST/FILE?key=value&block_size=4096``.
        other: what ``--block-size`` says.

    Returns:
        The SPEC without it, and the bytes that either says.

    Raises:
        UsageError: it is no size of a block, or both say something else.

    """
    is_url = "://" in spec
    # A path may have question marks.
    where, mark, query = spec.partition("?") if is_url else spec.rpartition("?")
    fields = query.split("&") if mark else []
    mine = [field for field in fields if field.startswith(_BLOCK_SIZE)]
    if not mine:
        return spec, other
    others = [field for field in fields if field not in mine]
    if len(mine) > 1:
        raise UsageError(f"{_shown(spec)} has block_size= twice")
    if others and not is_url:
        raise UsageError(
            f"{_shown(spec)} has unknown options ({', '.join(others)}); there is: block_size"
        )
    size = parse_size(mine[0].removeprefix(_BLOCK_SIZE))
    try:
        check_block_size(size)
    except ValueError as exc:
        raise UsageError(f"{_shown(spec)}: {exc}") from None
    return "?".join([where, "&".join(others)] if others else [where]), _agreed(spec, size, other)


_BLOCK_SIZE = "block_size="


def _shown(spec: str) -> str:
    return repr(redact_url(without_password(spec)))


def _agreed(spec: str, mine: int | None, other: int | None) -> int | None:
    if None not in (mine, other) and mine != other:
        raise UsageError(f"{_shown(spec)} says block_size={mine}, and --block-size says {other}")
    return other if mine is None else mine


async def in_blocks(device: BlockDevice, block_size: int | None) -> BlockDevice:
    """The device with blocks of this size, if one is asked for; it is let go of if that fails."""
    if block_size is None or block_size == device.block_size:
        return device
    try:
        return BlockSize(device, block_size)
    except BaseException:
        await device.unmount()
        raise


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


def _memory(size: int, block_size: int | None) -> BlockDevice:
    if block_size is None:
        # The largest blocks that the size allows.
        block_size = min(size & -size, 4096)
        block_size = block_size if block_size >= 512 else 4096
    try:
        return MemoryDevice(size, block_size=block_size)
    except ValueError as exc:
        raise UsageError(f"memory:{size}: {exc}") from None


def _read_only(device: BlockDevice) -> BlockDevice:
    device.read_only = True
    return device


def parse_path(text: str) -> str:
    """The path of ``file:PATH``.

    Raises:
        UsageError: there is none.

    """
    if not text:
        raise UsageError("'file:' names no file; write file:PATH")
    return text


async def _load_object(spec: str) -> BlockDevice:
    where, _, attribute = spec.rpartition(":")
    is_uri = "://" in spec and not where.endswith(".py")
    if is_uri or not where.strip(".") or (where.startswith(".") and not where.endswith(".py")):
        raise _no_module(spec)
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
