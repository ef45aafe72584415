"""Commands for disks in object stores: create, snapshot, clone, delete, gc, check, convert."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TypedDict

from ..storage import objects
from ..storage.objects.url import split_url
from ..text import escape
from .diskspec import DiskSpec, read_key
from .errors import SpecError, UsageError
from .options import add_json, add_loop, add_progress
from .parser import CommandParser
from .progress import progress
from .runner import async_command
from .sizes import format_size
from .tables import format_table

DISK_HELP = """s3://BUCKET/FOLDER, gs://, az:// or folder:PATH, a disk in an object store;
credentials come from the environment, and the key of an encrypted disk from the file that
AIOVBLK_KEY_FILE names"""


class SnapshotFacts(TypedDict):
    """A snapshot, as JSON has it."""

    name: str
    time: str
    size: int
    clones: list[str]


def configure_create(parser: CommandParser) -> None:
    """Describe ``aiovblk create`` and its options."""
    parser.usage = "%(prog)s [OPTION...] DISK?size=SIZE"
    parser.description = (
        "Make a disk in an object store: s3://BUCKET/FOLDER?size=10G. Further options, after &: "
        "chunk_size=1M, block_size=4K, compress=yes. If AIOVBLK_KEY_FILE names a key file, the "
        "disk is encrypted with that key."
    )
    parser.add_argument("spec", metavar="DISK?size=SIZE", help=DISK_HELP)
    add_loop(parser)
    parser.show_examples(
        (
            "a disk of 100 GiB, compressed",
            "aiovblk create 's3://bucket/disk?size=100G&compress=yes'",
        )
    )
    parser.set_defaults(command=async_command(create))


async def create(arguments: Namespace) -> None:
    """``aiovblk create``: make a disk."""
    await DiskSpec.parse(arguments.spec).create()


def configure_snapshot(parser: CommandParser) -> None:
    """Describe ``aiovblk snapshot`` and its options."""
    parser.usage = "%(prog)s [OPTION...] DISK [NAME]"
    parser.description = (
        "Take a snapshot of a disk under a NAME; without one, list the snapshots. The disk may be "
        "mounted: what was flushed is in the snapshot. SPEC?snapshot=NAME mounts it, read-only."
    )
    parser.add_argument("spec", metavar="DISK", help=DISK_HELP)
    parser.add_argument("name", metavar="NAME", nargs="?", help="the snapshot to take or drop")
    parser.add_argument("--drop", action="store_true", help="delete the snapshot")
    add_json(parser)
    add_loop(parser)
    parser.show_examples(
        ("take one", "aiovblk snapshot s3://bucket/disk monday"),
        ("list them", "aiovblk snapshot s3://bucket/disk"),
        ("drop it", "aiovblk snapshot s3://bucket/disk monday --drop"),
    )
    parser.set_defaults(command=async_command(snapshot))


async def snapshot(arguments: Namespace) -> None:
    """``aiovblk snapshot``: take a snapshot, drop one, or list them."""
    url, key = DiskSpec.parse_alone(arguments.spec).url, read_key()
    if arguments.name is None:
        if arguments.drop:
            raise UsageError("snapshot name missing: add NAME, the snapshot to drop")
        found = describe_snapshots(await objects.snapshots(url, key=key))
        print(json.dumps(found, indent=2) if arguments.json else snapshots_table(found))
    elif arguments.json:
        raise UsageError("--json is for the list of snapshots: leave NAME out")
    elif arguments.drop:
        await objects.drop_snapshot(url, name=arguments.name, key=key)
    else:
        await objects.snapshot(url, name=arguments.name, key=key)


def describe_snapshots(found: Mapping[str, objects.Snapshot]) -> list[SnapshotFacts]:
    """Return what JSON has of each snapshot: sizes in bytes, times as ISO 8601 in UTC."""
    return [
        {
            "name": name,
            "time": datetime.fromtimestamp(each.time, UTC).isoformat(),
            "size": each.size,
            "clones": [clone.path for clone in each.clones.values()],
        }
        for name, each in found.items()
    ]


def snapshots_table(found: Iterable[SnapshotFacts]) -> str:
    """Format snapshots as a table, with local times."""
    rows = [
        (
            each["name"],
            f"{datetime.fromisoformat(each['time']).astimezone():%Y-%m-%d %H:%M:%S}",
            format_size(each["size"]),
            ", ".join(each["clones"]) or "-",
        )
        for each in found
    ]
    return format_table(("SNAPSHOT", "TIME", "SIZE", "CLONES"), rows)


def configure_clone(parser: CommandParser) -> None:
    """Describe ``aiovblk clone`` and its options."""
    parser.usage = "%(prog)s [OPTION...] DISK?snapshot=NAME TARGET"
    parser.description = (
        "Make a disk from a snapshot of another one, without copying: both share what neither "
        "changes. Takes one or two requests, whatever the size."
    )
    parser.add_argument("spec", metavar="DISK?snapshot=NAME", help=f"the snapshot: {DISK_HELP}")
    parser.add_argument("target", metavar="TARGET", help="the new disk, in the same bucket")
    add_loop(parser)
    parser.show_examples(
        (
            "a disk that begins as another one was on Monday",
            "aiovblk clone 's3://bucket/disk?snapshot=monday' s3://bucket/copy",
        )
    )
    parser.set_defaults(command=async_command(clone))


async def clone(arguments: Namespace) -> None:
    """``aiovblk clone``: make a disk from a snapshot."""
    source = DiskSpec.parse_alone(arguments.spec, "snapshot")
    root, folder = split_url(DiskSpec.parse_alone(arguments.target).url)
    if source.snapshot is None:
        raise UsageError(f"snapshot missing: write {source.text}?snapshot=NAME")
    if root != split_url(source.url)[0]:
        raise UsageError("a clone must be in the same bucket; `aiovblk copy` copies to another one")
    await objects.clone(source.url, name=source.snapshot, target=folder, key=read_key())


def configure_delete(parser: CommandParser) -> None:
    """Describe ``aiovblk delete`` and its options."""
    parser.usage = "%(prog)s [OPTION...] DISK"
    parser.description = (
        "Delete a disk in an object store, with its snapshots. Refused while a process writes to "
        "it, and if a clone needs one of its snapshots. Also completes a deletion that was "
        "interrupted."
    )
    parser.add_argument("spec", metavar="DISK", help=DISK_HELP)
    parser.add_argument(
        "--force",
        action="store_true",
        help="even if a process writes to it, which notices at its next flush, if at all",
    )
    add_loop(parser)
    parser.show_examples(("delete a disk", "aiovblk delete s3://bucket/disk"))
    parser.set_defaults(command=async_command(delete))


async def delete(arguments: Namespace) -> None:
    """``aiovblk delete``: delete a disk."""
    disk = DiskSpec.parse_alone(arguments.spec, "snapshot")
    if disk.snapshot is not None:
        reason = f"`aiovblk snapshot {disk.text} {disk.snapshot} --drop` drops a snapshot"
        raise UsageError(f"{reason}; write the disk without ?snapshot= to delete all of it")
    found = await objects.delete(disk.url, key=read_key(), force=arguments.force)
    print(f"deleted {found.objects} objects, {format_size(found.size)}")


def configure_gc(parser: CommandParser) -> None:
    """Describe ``aiovblk gc`` and its options."""
    parser.usage = "%(prog)s [OPTION...] DISK"
    parser.description = (
        "Collect garbage: delete what crashed writers have left, and what only dropped snapshots "
        "needed. The disk may be mounted."
    )
    parser.add_argument("spec", metavar="DISK", help=DISK_HELP)
    parser.add_argument("--dry-run", action="store_true", help="only report what would be deleted")
    add_loop(parser)
    parser.show_examples(("what would be deleted", "aiovblk gc s3://bucket/disk --dry-run"))
    parser.set_defaults(command=async_command(collect_garbage))


async def collect_garbage(arguments: Namespace) -> None:
    """``aiovblk gc``: collect garbage, delete the objects that nothing refers to."""
    url = DiskSpec.parse_alone(arguments.spec).url
    found = await objects.collect_garbage(url, key=read_key(), delete=not arguments.dry_run)
    done = "would delete" if arguments.dry_run else "deleted"
    print(f"{done} {found.objects} objects, {format_size(found.size)}")


def configure_check(parser: CommandParser) -> None:
    """Describe ``aiovblk check`` and its options."""
    parser.usage = "%(prog)s [OPTION...] DISK"
    parser.description = (
        "Read a disk and its snapshots, and verify that all objects exist and are unchanged. Exit "
        "status 1 and a line for each problem if not. Changes nothing; best while the disk is not "
        "written to."
    )
    parser.add_argument("spec", metavar="DISK", help=DISK_HELP)
    parser.add_argument("--quick", action="store_true", help="only check that all objects exist")
    parser.add_argument(
        "--trust-origins",
        action="store_true",
        help="first authenticate the disks that an encrypted clone of an older version reads from",
    )
    add_progress(parser)
    add_loop(parser)
    parser.show_examples(("is everything there, and intact?", "aiovblk check s3://bucket/disk"))
    parser.set_defaults(command=async_command(check))


async def check(arguments: Namespace) -> None:
    """``aiovblk check``: verify that a disk is intact."""
    url = DiskSpec.parse_alone(arguments.spec).url
    contents = not arguments.quick
    if arguments.trust_origins:
        await objects.trust_origins(url, key=read_key())
    with progress(0, "chunk", shown=arguments.progress) as advance:
        report = await objects.check(url, key=read_key(), contents=contents, advance=advance)
    for problem in report.problems:
        print(escape(problem))
    checked = f"{report.chunks} chunks"
    if report.segments:
        checked += f" and {report.segments} segments"
    if report.problems:
        raise SpecError(f"{len(report.problems)} problems; {checked} were checked")
    print(f"{checked}, {format_size(report.size)} stored: all is well", file=sys.stdout)


def configure_convert(parser: CommandParser) -> None:
    """Describe ``aiovblk convert`` and its options."""
    parser.usage = "%(prog)s [OPTION...] DISK"
    parser.description = (
        "Convert a disk of an earlier format to the present one, in which it can be written to. In "
        "place, copying nothing, in a few requests; if it is interrupted, run it again. Earlier "
        "versions of aiovblk do not open it afterwards. The disk must not be mounted."
    )
    parser.add_argument("spec", metavar="DISK", help=DISK_HELP)
    add_loop(parser)
    parser.show_examples(
        ("let a disk of an earlier version be written to", "aiovblk convert s3://bucket/disk")
    )
    parser.set_defaults(command=async_command(convert))


async def convert(arguments: Namespace) -> None:
    """``aiovblk convert``: make a disk of an earlier format one of the present format."""
    url = DiskSpec.parse_alone(arguments.spec).url
    done = await objects.convert(url, key=read_key())
    print("converted" if done else "nothing to do: the disk has the present format")
