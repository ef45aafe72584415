"""``aiovblk limit``: change the rate limits of a mounted device, or show them."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from dataclasses import asdict

from ..mounting import Mount
from ..storage import Rate, RateLimited
from . import values
from .attached import NODE, resolve
from .control import request_command
from .errors import UsageError
from .layerkinds import set_limits
from .layers import LayerSpec, stack_of
from .options import add_json, add_loop
from .parser import CommandParser
from .runner import async_command
from .sizes import format_size

NO_LIMIT = "none"

Limits = dict[str, dict[str, float | None] | None]
"""The limits of all requests, of reads and of writes, as JSON has them: see :class:`.Rate`."""


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = f"%(prog)s [OPTION...] {NODE} [LIMIT]"
    parser.description = (
        "Change the rate limits of a device that `aiovblk mount` serves with --layer limit:LIMIT, "
        "while it is in use; requests that wait are subject to the new ones at once. All limits "
        "are replaced. Without LIMIT, show them. Limits of `aiovblk serve` and of `aiovblk copy` "
        "cannot be changed so. rate=50M is 50 MiB/s, and rate=100000000 is 100 MB/s."
    )
    parser.add_argument("path", type=values.text, metavar=NODE, help="the device")
    parser.add_argument(
        "limit",
        type=_limit,
        metavar="LIMIT",
        nargs="?",
        help="options of the layer, as rate=100M,write-requests=500,burst=2; none for no limit",
    )
    add_json(parser)
    add_loop(parser)
    parser.show_examples(
        ("20 MiB/s for writes, nothing else", "aiovblk limit /dev/nbd0 write-rate=20M"),
        ("lift all limits", "aiovblk limit /dev/nbd0 none"),
    )
    parser.set_defaults(command=async_command(limit))


def _limit(text: str) -> str:
    """Validate the text of a limit; the server parses it once more."""
    if text != NO_LIMIT:
        LayerSpec.parse(f"limit:{text}")
    return text


async def limit(arguments: Namespace) -> None:
    """``aiovblk limit``: change limits, or show them."""
    disk = resolve(arguments.path)
    if arguments.limit is not None:
        if arguments.json:
            raise UsageError("--json is for showing limits: leave LIMIT out")
        await request_command(disk, "limit", text=arguments.limit)
        return
    found: Limits = await request_command(disk, "limit", text=None)
    print(json.dumps(found, indent=2) if arguments.json else as_text(found))


def as_text(limits: Limits) -> str:
    """Format a line for each kind of requests."""
    return "\n".join(f"{kind:<6}  {_shown(rate or {})}" for kind, rate in limits.items())


def _shown(rate: Mapping[str, float | None]) -> str:
    parts = []
    if most := rate.get("bytes"):
        parts.append(f"{format_size(most)}/s")
    if requests := rate.get("requests"):
        parts.append(f"{requests:g} requests/s")
    return ", ".join([*parts, f"burst {rate['burst']:g} s"]) if parts else NO_LIMIT


async def limit_mounted(mount: Mount, text: str | None) -> Limits:
    """Change the limits of the mounted device of this process, and return them.

    Args:
        mount: the device.
        text: options of the layer, or :data:`NO_LIMIT`; None to change nothing.

    Raises:
        ValueError: it has no such layer, or the text is no limit.

    """
    limited = _find_limit(mount)
    if text is not None:
        try:
            settings = {} if text == NO_LIMIT else LayerSpec.parse(f"limit:{text}").settings
        except ArgumentTypeError as exc:
            raise ValueError(str(exc)) from None
        set_limits(limited, settings)
    return {
        "all": _as_json(limited.limit),
        "reads": _as_json(limited.read_limit),
        "writes": _as_json(limited.write_limit),
    }


def _find_limit(mount: Mount) -> RateLimited:
    """Return the limit that is next to the kernel."""
    for each in stack_of(mount.device):
        if isinstance(each, RateLimited):
            return each
    raise ValueError("it has no limit to change: mount it with --layer limit:rate=...")


def _as_json(rate: Rate | None) -> dict[str, float | None] | None:
    return None if rate is None else asdict(rate)
