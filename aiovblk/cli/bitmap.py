"""``aiovblk bitmap``: list, add, drop and merge named points of a live device."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypedDict

from ..mounting import Mount
from ..storage import Layer, Tracked
from ..storage.tracked import Point
from ..text import escape
from . import values
from .attached import NODE, resolve
from .control import request_command, request_command_at, taking_commands_at
from .errors import UsageError
from .options import add_json, add_loop
from .parser import CommandParser
from .runner import async_command
from .sizes import format_size
from .tables import format_table


class PointFacts(TypedDict):
    """A point, as JSON has it."""

    name: str
    time: str
    dirty: int


Request = Callable[..., Awaitable[list[PointFacts]]]
"""Makes a request to the process that has the device."""


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = f"%(prog)s [OPTION...] {NODE} | FILE [NAME]"
    parser.description = (
        "Add a point under a NAME to a device with --layer tracked:path=FILE, while it is in use: "
        "from then on, which blocks are written is recorded in a dirty bitmap of this name. "
        "Without NAME, list the points. A device that `aiovblk mount` serves is named by its node, "
        "one of `aiovblk serve` by FILE."
    )
    parser.add_argument(
        "target",
        type=values.text,
        metavar=f"{NODE} | FILE",
        help="the mounted device, or the file of the bitmaps of a served one",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="the point")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--drop", action="store_true", help="drop the point")
    group.add_argument(
        "--merge",
        metavar="OTHER",
        action="append",
        help="let the point have as dirty what another one has, which stays; may be repeated",
    )
    add_json(parser)
    add_loop(parser)
    parser.show_examples(
        ("from now on", "aiovblk bitmap /dev/nbd0 monday"),
        ("how much has changed since", "aiovblk bitmap /dev/nbd0"),
        ("it is not needed any more", "aiovblk bitmap /dev/nbd0 monday --drop"),
    )
    parser.set_defaults(command=async_command(bitmap))


async def bitmap(arguments: Namespace) -> None:
    """``aiovblk bitmap``: list the points, or change them."""
    request = _request_to(arguments.target)
    if arguments.name is None:
        if arguments.drop or arguments.merge:
            raise UsageError("point missing: add NAME")
        found = await request(action="list", name=None, sources=[])
        print(json.dumps(found, indent=2) if arguments.json else points_table(found))
        return
    if arguments.json:
        raise UsageError("--json is for the list of points: leave NAME out")
    action = "drop" if arguments.drop else "merge" if arguments.merge else "add"
    await request(action=action, name=arguments.name, sources=arguments.merge or [])


def _request_to(target: str) -> Request:
    if target.startswith("/dev/"):
        return partial(request_command, resolve(target), "bitmap")
    refused = (
        f"{target} is not in use by `aiovblk serve --layer tracked:path={target}`; a mounted device"
        " is named by its node, /dev/nbdN"
    )
    return partial(request_command_at, _control_path(target), target, refused, "bitmap")


def _control_path(path: str) -> Path:
    return Path(f"{path}.control")


def describe_points(found: Iterable[Point]) -> list[PointFacts]:
    """Return what JSON has of each point: bytes, and the time as ISO 8601 in UTC."""
    return [
        {
            "name": each.name,
            "time": datetime.fromtimestamp(each.time, UTC).isoformat(),
            "dirty": each.dirty,
        }
        for each in found
    ]


def points_table(found: Iterable[PointFacts]) -> str:
    """Format points as a table, with local times."""
    rows = [
        (
            escape(each["name"]),
            f"{datetime.fromisoformat(each['time']).astimezone():%Y-%m-%d %H:%M:%S}",
            format_size(each["dirty"]),
        )
        for each in found
    ]
    return format_table(("POINT", "TIME", "DIRTY"), rows)


async def bitmap_mounted(
    mount: Mount, action: str, name: str | None, sources: list[str]
) -> list[PointFacts]:
    """Change the points of the mounted device of this process, and return them.

    Args:
        mount: the device.
        action: ``list``, ``add``, ``drop`` or ``merge``.
        name: of the point; None for ``list``.
        sources: names of further points, for ``merge``.

    Raises:
        ValueError: it has no such layer or point, or the name is impossible.
        Error, OSError: see :class:`.Tracked`.

    """
    tracked = find_tracked(mount.device)
    if tracked is None:
        raise ValueError("it has no bitmaps: mount it with --layer tracked:path=FILE")
    return await change_points(tracked, action, name, sources)


async def change_points(
    tracked: Tracked, action: str, name: str | None, sources: list[str]
) -> list[PointFacts]:
    """Change points; see :func:`bitmap_mounted`."""
    try:
        match action, name:
            case "list", None:
                return describe_points(await tracked.points())
            case "add", str():
                await tracked.add(name)
            case "drop", str():
                await tracked.drop(name)
            case "merge", str():
                await tracked.merge(name, *sources)
            case _:
                raise ValueError(f"there is no action {action!r}")
    except KeyError as exc:
        raise ValueError(exc.args[0]) from None
    return []


def find_tracked(device: object) -> Tracked | None:
    """Return the layer that records changes, the uppermost if there are several."""
    while isinstance(device, Layer):
        if isinstance(device, Tracked):
            return device
        device = device.inner
    return None


@asynccontextmanager
async def taking_bitmap_commands(devices: Iterable[object]) -> AsyncIterator[None]:
    """Take commands for the points of these devices while the block runs."""
    async with AsyncExitStack() as stack:
        for device in devices:
            tracked = find_tracked(device)
            if tracked is not None:
                commands = {"bitmap": partial(change_points, tracked)}
                path = _control_path(tracked.path)
                await stack.enter_async_context(taking_commands_at(path, tracked.path, commands))
        yield
