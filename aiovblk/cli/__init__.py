"""The command line: ``aiovblk mount | serve | unmount | list | top | doctor | copy`` and more.

An error is one line on stderr and exit status 1; a wrong call (:class:`.errors.UsageError`) is exit
status 2. Everything that only a program, not a library, may do happens here: signal handlers, the
choice of an event loop, logging, settings by environment variables.

Each command has a module; its ``configure`` gives argparse the command's description, options and
function. The commands for disks in object stores share one, :mod:`.object_store`. Options that
several commands have are in :mod:`.options`, what opens a SPEC is in :mod:`.spec`, what a layer is
called there in :mod:`.layers`. The manual pages and completions are made from the parser.
"""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

from .. import __version__
from ..errors import Error
from ..text import escape
from . import (
    backup,
    bitmap,
    copy,
    diff,
    doctor,
    info,
    limit,
    list_devices,
    mount,
    object_store,
    resize,
    serve,
    top,
    unmount,
)
from .descriptors import open_standard_descriptors
from .errors import UsageError
from .logs import add_logging, configure_logging, print_error
from .parser import CommandParser, EnvironmentParser

Configure = Callable[[CommandParser], None]

COMMANDS: dict[str, tuple[str, Configure]] = {
    "mount": ("serve a device to this machine's kernel, as /dev/nbdN", mount.configure),
    "serve": ("serve devices to NBD clients", serve.configure),
    "unmount": ("unmount a device of any process", unmount.configure),
    "list": ("show the attached devices and their users", list_devices.configure),
    "top": ("show throughput and latency of the devices, live", top.configure),
    "doctor": ("diagnose problems and suggest fixes", doctor.configure),
    "copy": ("copy one device to another", copy.configure),
    "backup": ("back up a device: what has changed since the last time", backup.configure_backup),
    "restore": ("restore a backup into a device", backup.configure_restore),
    "backups": ("list backups, or verify them", backup.configure_backups),
    "create": ("make a disk in an object store", object_store.configure_create),
    "snapshot": ("take, list or drop snapshots of a disk", object_store.configure_snapshot),
    "clone": ("make a disk from a snapshot, without copying", object_store.configure_clone),
    "diff": ("show what differs between two snapshots of a disk", diff.configure),
    "info": ("show what a disk, an export or a device is", info.configure),
    "resize": ("resize a disk in an object store, or a mounted device", resize.configure),
    "limit": ("change the rate limits of a mounted device, or show them", limit.configure),
    "bitmap": (
        "add, drop, merge or list points since which changes are recorded",
        bitmap.configure,
    ),
    "delete": ("delete a disk in an object store", object_store.configure_delete),
    "gc": ("delete what no disk or snapshot needs", object_store.configure_gc),
    "check": ("verify that a disk is intact", object_store.configure_check),
    "convert": ("give a disk the present format, in place", object_store.configure_convert),
}
"""Each command, with what it does, and what describes it to argparse."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    open_standard_descriptors()
    words = sys.argv[1:] if arguments is None else list(arguments)
    parsed = make_parser(words).parse_args(words, Namespace(words=words))
    configure_logging(parsed)
    command: Callable[[Namespace], int | None] = parsed.command
    try:
        return command(parsed) or 0
    except (Error, OSError, ValueError, TypeError) as exc:
        logging.getLogger("aiovblk").debug("traceback of the error:", exc_info=True)
        print_error(parsed, escape(_format_error(exc)))
        return 2 if isinstance(exc, UsageError) else 1
    except KeyboardInterrupt:
        return 130


def make_parser(words: Sequence[str] | None = None) -> EnvironmentParser:
    """Make the parser of the whole command line; its subparsers are :class:`.CommandParser`.

    Args:
        words: a command line, for which the parser is enough: a command that it does not name has
            no options. With all options of all commands, the parser takes 20 milliseconds to make.

    """
    parser = EnvironmentParser(
        prog="aiovblk",
        description="Virtual block devices from Python.",
        epilog="`aiovblk COMMAND --help` describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"aiovblk {__version__}")
    add_logging(parser, is_command=False)
    commands = parser.add_subparsers(
        required=True, title="commands", metavar="COMMAND", parser_class=CommandParser
    )
    for name, (purpose, configure) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose)
        if words is None or name in words:
            configure(command)
            add_logging(command, is_command=True)
    return parser


def _format_error(exc: Exception) -> str:
    """Return the message of an exception, without the number that OSError puts before it."""
    if isinstance(exc, OSError) and not isinstance(exc, Error) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    return str(exc)
