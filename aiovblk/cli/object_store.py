"""Commands for disks in object stores: create, snapshot, clone, gc, check, convert."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace

from ..storage import objects
from ..storage.objects.url import split_url
from ..text import escape
from .diskspec import DiskSpec, read_key
from .errors import SpecError, UsageError
from .options import add_loop, add_progress
from .progress import progress
from .runner import async_command
from .sizes import format_size

DISK_HELP = """s3://BUCKET/FOLDER, gs://, az:// or folder:PATH, a disk in an object store;
credentials come from the environment, and the key of an encrypted disk from the file that
AIOVBLK_KEY_FILE names"""


def configure_create(parser: ArgumentParser) -> None:
    """Describe ``aiovblk create`` and its options."""
    parser.description = (
        "Make a disk in an object store: s3://BUCKET/FOLDER?size=10G. Further options, after &: "
        "chunk_size=1M, block_size=4K, compress=yes. If AIOVBLK_KEY_FILE names a key file, the "
        "disk is encrypted with that key."
    )
    parser.add_argument("spec", metavar="SPEC", help=DISK_HELP)
    add_loop(parser)
    parser.set_defaults(command=async_command(create))


async def create(arguments: Namespace) -> None:
    """``aiovblk create``: make a disk."""
    await DiskSpec.parse(arguments.spec).create()


def configure_snapshot(parser: ArgumentParser) -> None:
    """Describe ``aiovblk snapshot`` and its options."""
    parser.description = (
        "Take a snapshot of a disk under a NAME; without one, list the snapshots. The disk may be "
        "mounted: what was flushed is in the snapshot. SPEC?snapshot=NAME mounts it, read-only."
    )
    parser.add_argument("spec", metavar="SPEC", help=DISK_HELP)
    parser.add_argument("name", metavar="NAME", nargs="?")
    parser.add_argument("--drop", action="store_true", help="delete the snapshot")
    add_loop(parser)
    parser.set_defaults(command=async_command(snapshot))


async def snapshot(arguments: Namespace) -> None:
    """``aiovblk snapshot``: take a snapshot, drop one, or list them."""
    url, key = DiskSpec.parse(arguments.spec).url, read_key()
    if arguments.name is None:
        if arguments.drop:
            raise UsageError("snapshot name missing: add NAME, the snapshot to drop")
        for name, found in (await objects.snapshots(url, key=key)).items():
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.time))
            clones = "".join(f", cloned to {clone.path}" for clone in found.clones.values())
            print(f"{escape(name)}\t{when}\t{format_size(found.size)}{escape(clones)}")
    elif arguments.drop:
        await objects.drop_snapshot(url, name=arguments.name, key=key)
    else:
        await objects.snapshot(url, name=arguments.name, key=key)


def configure_clone(parser: ArgumentParser) -> None:
    """Describe ``aiovblk clone`` and its options."""
    parser.description = (
        "Make a disk from a snapshot of another one, without copying: both share what neither "
        "changes. Takes one or two requests, whatever the size."
    )
    parser.add_argument("spec", metavar="SPEC?snapshot=NAME", help=DISK_HELP)
    parser.add_argument("target", metavar="SPEC", help="the new disk, in the same bucket")
    add_loop(parser)
    parser.set_defaults(command=async_command(clone))


async def clone(arguments: Namespace) -> None:
    """``aiovblk clone``: make a disk from a snapshot."""
    source = DiskSpec.parse(arguments.spec)
    root, folder = split_url(DiskSpec.parse(arguments.target).url)
    if source.snapshot is None:
        raise UsageError(f"snapshot missing: write {source.text}?snapshot=NAME")
    if root != split_url(source.url)[0]:
        raise UsageError("a clone must be in the same bucket; `aiovblk copy` copies to another one")
    await objects.clone(source.url, name=source.snapshot, target=folder, key=read_key())


def configure_gc(parser: ArgumentParser) -> None:
    """Describe ``aiovblk gc`` and its options."""
    parser.description = (
        "Collect garbage: delete what crashed writers have left, and what only dropped snapshots "
        "needed. The disk may be mounted."
    )
    parser.add_argument("spec", metavar="SPEC", help=DISK_HELP)
    parser.add_argument("--dry-run", action="store_true", help="only report what would be deleted")
    add_loop(parser)
    parser.set_defaults(command=async_command(collect_garbage))


async def collect_garbage(arguments: Namespace) -> None:
    """``aiovblk gc``: collect garbage, delete the objects that nothing refers to."""
    url = DiskSpec.parse(arguments.spec).url
    found = await objects.collect_garbage(url, key=read_key(), delete=not arguments.dry_run)
    done = "would delete" if arguments.dry_run else "deleted"
    print(f"{done} {found.objects} objects, {format_size(found.size)}")


def configure_check(parser: ArgumentParser) -> None:
    """Describe ``aiovblk check`` and its options."""
    parser.description = (
        "Read a disk and its snapshots, and verify that all objects exist and are unchanged. Exit "
        "status 1 and a line for each problem if not. Changes nothing; best while the disk is not "
        "written to."
    )
    parser.add_argument("spec", metavar="SPEC", help=DISK_HELP)
    parser.add_argument("--quick", action="store_true", help="only check that all objects exist")
    parser.add_argument(
        "--trust-origins",
        action="store_true",
        help="first authenticate the disks that an encrypted clone of an older version reads from",
    )
    add_progress(parser)
    add_loop(parser)
    parser.set_defaults(command=async_command(check))


async def check(arguments: Namespace) -> None:
    """``aiovblk check``: verify that a disk is intact."""
    url = DiskSpec.parse(arguments.spec).url
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


def configure_convert(parser: ArgumentParser) -> None:
    """Describe ``aiovblk convert`` and its options."""
    parser.description = (
        "Convert a disk of an earlier format to the present one, in which it can be written to. In "
        "place, copying nothing, in a few requests; if it is interrupted, run it again. Earlier "
        "versions of aiovblk do not open it afterwards. The disk must not be mounted."
    )
    parser.add_argument("spec", metavar="SPEC", help=DISK_HELP)
    add_loop(parser)
    parser.set_defaults(command=async_command(convert))


async def convert(arguments: Namespace) -> None:
    """``aiovblk convert``: make a disk of an earlier format one of the present format."""
    done = await objects.convert(DiskSpec.parse(arguments.spec).url, key=read_key())
    print("converted" if done else "nothing to do: the disk has the present format")
