"""``aiovblk diff``: show what differs between two snapshots of a disk, or disks of one origin."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from ..storage import objects
from ..storage.objects import ChangedExtent, Difference, DiffTotals
from ..storage.objects.url import split_url
from .diskspec import DiskSpec, read_key
from .errors import UsageError
from .object_store import DISK_HELP
from .options import add_json, add_loop
from .parser import CommandParser
from .redaction import redact
from .runner import async_command
from .sizes import format_size
from .spec import find_scheme


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = "%(prog)s [OPTION...] EARLIER LATER"
    parser.description = (
        "Show what differs between two states of a disk in an object store: snapshots "
        "(?snapshot=NAME), the present one (what was flushed last), or those of disks that share "
        "an origin. Reads records and maps only, and no data. All that differs is listed, and what "
        "the compactor has moved as well. Exit status 0 whether or not there is a difference."
    )
    parser.add_argument("earlier", metavar="EARLIER", help=f"the earlier state: {DISK_HELP}")
    parser.add_argument("later", metavar="LATER", help="the later one, in the same bucket")
    add_json(parser)
    add_loop(parser)
    parser.show_examples(
        (
            "what was written since Monday",
            "aiovblk diff 's3://bucket/disk?snapshot=monday' s3://bucket/disk",
        ),
        (
            "how many bytes that is",
            "aiovblk diff 's3://bucket/disk?snapshot=monday' s3://bucket/disk --json"
            " | jq .totals.changed",
        ),
    )
    parser.set_defaults(command=async_command(show))


async def show(arguments: Namespace) -> None:
    """``aiovblk diff``: print a line for each extent, and the sums."""
    earlier, later = _parse(arguments.earlier), _parse(arguments.later)
    root, folder = split_url(earlier.url)
    if root != split_url(later.url)[0]:
        raise UsageError("both must be in the same bucket; disks in two have nothing in common")
    found = await objects.diff(
        later.url,
        snapshot=later.snapshot,
        since=earlier.snapshot,
        since_path=folder,
        key=read_key(),
    )
    await (_print_json if arguments.json else _print_table)(found)


def _parse(spec: str) -> DiskSpec:
    if not find_scheme(spec).is_stored:
        raise UsageError(f"{redact(spec)!r} is no disk in an object store, whose states are known")
    return DiskSpec.parse(spec)


async def _print_table(found: Difference) -> None:
    # Line by line: there may be millions, which no table in memory should hold.
    width = max(len(str(found.size)), len("OFFSET"))
    totals = DiffTotals()
    async for extent in found:
        if not totals.extents:
            print(f"{'OFFSET':<{width}}  {'LENGTH':<{width}}  WHAT  GRANULARITY")
        totals = totals.plus(extent, found.chunk_size)
        unit = format_size(extent.granularity)
        print(f"{extent.offset:<{width}}  {extent.length:<{width}}  {_what(extent):<4}  {unit}")
    print(_summary(found, totals))


def _what(extent: ChangedExtent) -> str:
    return "zero" if extent.zero else "data"


def _summary(found: Difference, totals: DiffTotals) -> str:
    text = "no difference"
    if totals.extents:
        text = (
            f"{format_size(totals.changed)} differ in {totals.extents} extents:"
            f" {format_size(totals.data)} of data, {format_size(totals.zero)} of zeroes"
        )
    if totals.by_chunk and found.block_size < found.chunk_size:
        unit = format_size(found.chunk_size)
        text += f"; {format_size(totals.by_chunk)} known only by chunks of {unit}"
    if found.size != found.since_size:
        text += f"; the size is {format_size(found.size)}, it was {format_size(found.since_size)}"
    return text


async def _print_json(found: Difference) -> None:
    """Print one object, an extent a line, so that none of them is kept."""
    sizes: dict[str, Any] = {
        "size": found.size,
        "since_size": found.since_size,
        "block_size": found.block_size,
        "chunk_size": found.chunk_size,
    }
    print("{")
    for name, value in sizes.items():
        print(f'  "{name}": {value},')
    print('  "extents": [', end="")
    totals = DiffTotals()
    async for extent in found:
        print("," if totals.extents else "", end="\n    ")
        print(json.dumps(extent._asdict()), end="")
        totals = totals.plus(extent, found.chunk_size)
    print("\n  ]," if totals.extents else "],")
    sums = {
        "extents": totals.extents,
        "changed": totals.changed,
        "data": totals.data,
        "zero": totals.zero,
        "by_chunk": totals.by_chunk,
    }
    print(f'  "totals": {json.dumps(sums)}')
    print("}")
