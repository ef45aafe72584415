"""``aiovblk resize``: resize a disk in an object store, a file, or a mounted device."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from collections.abc import Callable
from functools import partial

from ..arguments import check_count
from ..client import RemoteDevice
from ..contract import MAX_SIZE
from ..errors import StorageBusyError
from ..kernel import sysfs
from ..mounting import Mount
from ..mounting.workers.backend import WorkersDevice
from ..storage import (
    FileDevice,
    HTTPDevice,
    MemoryDevice,
    Mirror,
    ObjectStoreDevice,
    Overlay,
    Partition,
)
from ..storage.objects.disk import check_geometry
from . import values
from .attached import NODE, is_attached, resolve
from .control import request_command
from .diskspec import DiskSpec, read_key
from .errors import SpecError, UsageError
from .layers import stack_of
from .options import add_loop
from .parser import CommandParser
from .runner import async_command
from .sizes import format_size, parse_size
from .spec import find_scheme

_FIXED = {
    MemoryDevice: "memory",
    RemoteDevice: "an NBD export",
    HTTPDevice: "a file on a web server",
    WorkersDevice: "what workers have open",
    Partition: "a partition",
    Overlay: "an overlay",
    Mirror: "a mirror",
}
"""Devices and layers that do not grow here, in words: they have their size once and for all, or
consist of more than one disk or file, or are not ours."""

RESIZE_TIMEOUT = 300.0
"""Seconds for a server to resize its device, which waits for requests in flight, and for an object
store."""


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = f"%(prog)s [OPTION...] DISK | {NODE} SIZE"
    parser.description = (
        "Resize a disk in an object store that no process has open, or a device that `aiovblk "
        "mount` serves, with the disk or file behind it. What is added are zeroes. A file system "
        "does not notice by itself: run resize2fs or xfs_growfs afterwards."
    )
    parser.add_argument(
        "target",
        metavar=f"DISK | {NODE}",
        type=values.text,
        help="s3://BUCKET/FOLDER, gs://, az:// or folder:PATH; or the node of a mounted device",
    )
    parser.add_argument(
        "size",
        metavar="SIZE",
        type=values.text,
        help="the new size, as 20G; or how much to add, as +10G",
    )
    parser.add_argument(
        "--shrink",
        action="store_true",
        help="permit a smaller size: what is beyond it is lost, but a file keeps its length",
    )
    add_loop(parser)
    parser.show_examples(
        ("a disk in a bucket", "aiovblk resize s3://bucket/disk 200G"),
        ("a device that is mounted, by 10 GiB", "aiovblk resize /dev/nbd0 +10G"),
    )
    parser.set_defaults(command=async_command(resize))


async def resize(arguments: Namespace) -> None:
    """``aiovblk resize``: resize a disk or a mounted device."""
    target, shrink = arguments.target, arguments.shrink
    if target.startswith("/dev/"):
        disk = resolve(target)
        if not is_attached(disk):
            raise SpecError(f"{target} is not mounted")
        size = _wanted(arguments.size, sysfs.size(disk), shrink=shrink)
        await request_command(disk, "resize", timeout=RESIZE_TIMEOUT, size=size, shrink=shrink)
        return
    if not find_scheme(target).is_stored:
        raise UsageError(
            "only disks in object stores and mounted devices are resized; for a file, use"
            " `truncate -s SIZE FILE`"
        )
    await _resize_disk(DiskSpec.parse_alone(target), arguments.size, shrink=shrink)


async def _resize_disk(spec: DiskSpec, text: str, *, shrink: bool) -> None:
    try:
        device = await ObjectStoreDevice.open(spec.url, key=read_key())
    except StorageBusyError as exc:
        in_use = str(exc).partition(";")[0]
        raise SpecError(f"{in_use}; resize it there, by `aiovblk resize /dev/nbdN`") from None
    try:
        size = _wanted(text, device.size, shrink=shrink)
        check_geometry(size, device.block_size, device.chunk_size)
        device.blocks = size // device.block_size
    finally:
        await device.unmount()  # which flushes


def _wanted(text: str, size: int, *, shrink: bool) -> int:
    """Return the new size in bytes.

    Raises:
        UsageError: it is none, or smaller, which has to be permitted.

    """
    wanted = size + parse_size(text[1:]) if text.startswith("+") else parse_size(text)
    if wanted < size and not shrink:
        raise UsageError(
            f"{text} is less than the {format_size(size)} that it has: add --shrink, and what is"
            " beyond is lost"
        )
    return wanted


async def resize_mounted(mount: Mount, size: int, shrink: bool) -> None:
    """Resize the mounted device of this process, and the file or disk below its layers.

    Args:
        mount: the device.
        size: bytes.
        shrink: whether it may become smaller. What is in use is never cut.

    Raises:
        TypeError, ValueError: the size is impossible for this device.
        Error, OSError: see :meth:`.Mount.resize`.

    """
    device = mount.device
    *_, bottom = stack = list(stack_of(device))
    check_count("the size", size, maximum=MAX_SIZE)
    if size % device.block_size:
        raise ValueError(f"the size must be a multiple of {device.block_size} bytes, not {size}")
    if size < device.size and not shrink:
        raise ValueError(f"it has {device.size} bytes, more than {size}")
    for each in stack if size > device.size else ():
        if type(each) in _FIXED:
            raise ValueError(f"{_FIXED[type(each)]} cannot grow")
    if isinstance(bottom, ObjectStoreDevice):
        check_geometry(size, bottom.block_size, bottom.chunk_size)
    undo: Callable[[], None] | None = None
    if isinstance(bottom, FileDevice) and size > device.size:
        undo = await asyncio.to_thread(_extend, bottom.path, size, read_only=bottom.read_only)
    try:
        await mount.resize(size // device.block_size)
    except TimeoutError:
        raise  # the kernel may still do it
    except OSError:
        if undo is not None:  # else the next server would have another device
            await asyncio.to_thread(undo)
        raise
    if isinstance(bottom, ObjectStoreDevice):
        await bottom.flush()  # which stores the new size


def _extend(path: str, size: int, *, read_only: bool) -> Callable[[], None] | None:
    """Extend a regular file that is smaller.

    Returns:
        What undoes it; None if it was not extended.

    Raises:
        ValueError: it is a block device, or may not be written to, and is smaller.

    """
    if not read_only and os.path.isfile(path) and (before := os.path.getsize(path)) < size:
        os.truncate(path, size)
        return partial(_shorten, path, size, before)
    with open(path, "rb", buffering=0) as file:
        present = file.seek(0, os.SEEK_END)  # stat() has 0 for a block device
    if present < size:
        raise ValueError(f"{path} has only {present} bytes: make it larger first")
    return None


def _shorten(path: str, size: int, before: int) -> None:
    """Give a file the size back that it had, unless another program has changed it since."""
    if os.path.getsize(path) == size:
        os.truncate(path, before)
