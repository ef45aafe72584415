"""``aiovblk backup``, ``restore`` and ``backups``: incremental backups of any device."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from ..storage.backup import Backup, BackupReport, Keep, RestoreReport, backup, restore
from ..storage.backup.moving import Progressed
from ..storage.backup.restoring import choose
from ..storage.copying import REQUESTS
from ..text import escape
from . import values
from .backup_specs import (
    NO_KEY,
    TARGET_HELP,
    identify,
    open_backups,
    open_restored,
    open_source,
)
from .diskspec import KEY_FILE
from .errors import SpecError
from .layers import LAYER_HELP, Layers, add_layer, layers_help
from .options import SPEC_HELP, add_json, add_loop, add_number, add_progress
from .parser import CommandParser
from .progress import progress
from .runner import async_command
from .sizes import format_size
from .tables import format_table

BACKUP_KEY = "AIOVBLK_BACKUP_KEY_FILE"
"""The environment variable that names the key file of backups."""


def configure_backup(parser: CommandParser) -> None:
    """Describe ``aiovblk backup`` and its options."""
    parser.usage = "%(prog)s [OPTION...] SPEC TARGET"
    parser.description = (
        "Back up a device: all of it the first time, then what has changed since. Of a disk in an "
        "object store, which may be mounted, a snapshot is taken and read, and kept as the base of "
        "the next backup. Any other device must not be written to meanwhile; if it has dirty "
        "bitmaps, --point names the one that begins now. What has changed is found by comparing "
        "where nothing tells it. Whenever this is interrupted, TARGET holds its earlier backups, "
        "and the next call goes on."
    )
    parser.add_argument("spec", metavar="SPEC", help=f"what to back up: {SPEC_HELP}")
    _add_target(parser)
    parser.add_argument(
        "--keep",
        type=parse_keep,
        metavar="RULES",
        help=(
            "keep only these, and drop the others: last=N, hourly=N, daily=N, weekly=N, monthly=N, "
            "yearly=N, with commas between them (default: keep all)"
        ),
    )
    parser.add_argument(
        "--point",
        type=values.text,
        metavar="NAME",
        help="the dirty bitmap of SPEC that began in the state that is backed up",
    )
    _add_identity(parser, "SPEC")
    _add_common(parser)
    _add_layers(parser)
    parser.show_examples(
        (
            "every night, from cron",
            "aiovblk backup s3://bucket/disk s3://backups/disk --keep daily=7,weekly=4",
        ),
        (
            "a file, encrypted, at 20 MiB/s at most",
            "aiovblk backup file:disk.raw s3://backups/disk --backup-key FILE --rate 20M",
        ),
    )
    parser.set_defaults(command=async_command(run_backup))


def configure_restore(parser: CommandParser) -> None:
    """Describe ``aiovblk restore`` and its options."""
    parser.usage = "%(prog)s [OPTION...] TARGET SPEC"
    parser.description = (
        "Restore a backup into a device: a new file or disk in an object store, or one that "
        "exists, of which only what differs is written. What is read of the backup is verified. If "
        "this is interrupted, SPEC is a mixture: run it again."
    )
    _add_target(parser)
    parser.add_argument("spec", metavar="SPEC", help=f"what to restore into: {SPEC_HELP}")
    parser.add_argument(
        "--name", type=values.text, help="the backup (default: the newest)", metavar="NAME"
    )
    _add_identity(parser, "SPEC")
    _add_common(parser)
    _add_layers(parser)
    parser.show_examples(
        ("the newest, into a new file", "aiovblk restore s3://backups/disk file:disk.raw"),
        (
            "an earlier one, into the disk that it is of",
            "aiovblk restore s3://backups/disk s3://bucket/disk --name 20260901T030000Z",
        ),
        (
            "into a disk whose changes are recorded",
            "aiovblk restore s3://backups/disk file:disk.raw --layer tracked:path=disk.bitmaps",
        ),
    )
    parser.set_defaults(command=async_command(run_restore))


def configure_backups(parser: CommandParser) -> None:
    """Describe ``aiovblk backups`` and its options."""
    parser.usage = "%(prog)s [OPTION...] TARGET"
    parser.description = (
        "List the backups that a target holds, oldest first; with --verify, read all of them, and "
        "report what is damaged: exit status 1 and a line for each problem."
    )
    _add_target(parser)
    parser.add_argument("--verify", action="store_true", help="read all, and verify the checksums")
    add_json(parser)
    add_progress(parser)
    add_loop(parser)
    parser.show_examples(("is everything intact?", "aiovblk backups s3://backups/disk --verify"))
    parser.set_defaults(command=async_command(run_backups))


def _add_target(parser: CommandParser) -> None:
    parser.add_argument("target", metavar="TARGET", help=f"what holds the backups: {TARGET_HELP}")
    parser.add_argument(
        "--backup-key",
        type=values.text,
        metavar="FILE",
        help=(
            f"the key file of TARGET, {NO_KEY!r} for no encryption "
            f"(default: the file that {KEY_FILE} names)"
        ),
    )
    parser.set_variables(backup_key=BACKUP_KEY)
    parser.add_argument(
        "--state",
        type=values.text,
        metavar="FOLDER",
        help=(
            "the folder where the state of a file or an export is kept, and its changes go first "
            "(default: PATH.backup of file:PATH)"
        ),
    )


def _add_identity(parser: CommandParser, what: str) -> None:
    parser.add_argument(
        "--identity",
        type=values.text,
        metavar="NAME",
        help=f"identifies {what} at each backup (default: where it is)",
    )


def _add_common(parser: CommandParser) -> None:
    parser.add_argument(
        "--rate",
        type=values.size,
        metavar="SIZE",
        help="bytes to read per second at most; 20M is 20 MiB",
    )
    add_number(parser, "--requests", REQUESTS, "requests in flight")
    add_json(parser)
    add_progress(parser)
    add_loop(parser)


def _add_layers(parser: CommandParser) -> None:
    group = parser.add_argument_group("layers", layers_help())
    add_layer(group, "--layer", f"of SPEC: {LAYER_HELP}")


def parse_keep(text: str) -> Keep:
    """Parse ``daily=7,weekly=4``, for argparse."""
    known = [each.name for each in fields(Keep)]
    rules: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in known or name in rules:
            raise ArgumentTypeError(
                f"must be rules such as daily=7,weekly=4, of {', '.join(known)}, each once, not"
                f" {text!r}"
            )
        rules[name] = values.count(minimum=0)(number)
    try:
        return Keep(**rules)
    except ValueError as exc:
        raise ArgumentTypeError(str(exc)) from None


async def run_backup(arguments: Namespace) -> None:
    """``aiovblk backup``: back up a device."""
    async with open_backups(arguments) as target, open_source(arguments) as source:
        with _bar(arguments) as advance:
            report = await backup(
                source,
                target,
                keep=arguments.keep,
                rate=arguments.rate,
                requests=arguments.requests,
                advance=advance,
            )
    print(json.dumps(_facts(report), indent=2) if arguments.json else _summary(report))


async def run_restore(arguments: Namespace) -> None:
    """``aiovblk restore``: restore a backup."""
    identity = arguments.identity or await identify(arguments.spec)
    async with open_backups(arguments) as target:
        chosen = choose(await target.backups(), arguments.name)
        layers = Layers(tuple(arguments.layer or ()))
        async with open_restored(arguments.spec, target, chosen.name, layers) as device:
            with _bar(arguments) as advance:
                report = await restore(
                    target,
                    device,
                    name=chosen.name,
                    identity=identity,
                    rate=arguments.rate,
                    requests=arguments.requests,
                    advance=advance,
                )
    print(json.dumps(_facts(report), indent=2) if arguments.json else _summary(report))


async def run_backups(arguments: Namespace) -> None:
    """``aiovblk backups``: list the backups of a target, or verify them."""
    async with open_backups(arguments) as target:
        found = await target.backups()
        problems: list[str] = []
        if arguments.verify:
            with progress(0, "", shown=arguments.progress) as advance:
                problems = await target.verify(advance)
    if arguments.json:
        facts: dict[str, Any] = {"backups": [_backup_facts(each) for each in found]}
        print(json.dumps(facts | ({"problems": problems} if arguments.verify else {}), indent=2))
    elif arguments.verify:
        for problem in problems:
            print(escape(problem))
    else:
        print(_table(found))
    if problems:
        raise SpecError(f"{len(problems)} problems in {len(found)} backups")
    if arguments.verify and not arguments.json:
        print(f"{len(found)} backups: all is well")


# What is printed


def _backup_facts(each: Backup) -> dict[str, Any]:
    return {
        "name": each.name,
        "time": datetime.fromtimestamp(each.time, UTC).isoformat(),
        "size": each.size,
        "source": each.source,
        "point": each.point,
    }


def _facts(report: BackupReport | RestoreReport) -> dict[str, Any]:
    others = {
        each.name: getattr(report, each.name) for each in fields(report) if each.name != "backup"
    }
    return {**_backup_facts(report.backup), **others}


def _summary(report: BackupReport | RestoreReport) -> str:
    if report.compared:
        how = "by comparing"
    elif report.base is None:
        how = "in full"
    else:
        how = f"by what differs from {report.base}"
    lines = [
        f"{report.backup.name}: {how}; {format_size(report.read)} read,"
        f" {format_size(report.written)} written"
    ]
    if isinstance(report, BackupReport) and report.dropped:
        freed = format_size(report.freed)
        lines.append(f"dropped {', '.join(report.dropped)}; {freed} deleted")
    return "\n".join(lines)


def _table(found: Sequence[Backup]) -> str:
    rows = [
        (
            each.name,
            f"{datetime.fromtimestamp(each.time).astimezone():%Y-%m-%d %H:%M:%S}",
            format_size(each.size),
            each.point or "-",
        )
        for each in found
    ]
    return format_table(("BACKUP", "TIME", "SIZE", "POINT"), rows)


@contextmanager
def _bar(arguments: Namespace) -> Iterator[Progressed]:
    """Show a progress bar once it is known how much there is to do."""
    bar: Any = None
    shown = 0
    with ExitStack() as stack:

        def advance(done: int, total: int) -> None:
            nonlocal bar, shown
            if bar is None:
                bar = stack.enter_context(progress(total, "B", shown=arguments.progress))
            bar(done - shown)
            shown = done

        yield advance
