"""The command line: ``aiovblk mount | serve | unmount | list | top | doctor | copy`` and more.

An error is one line on stderr and exit status 1; a wrong call (:class:`.units.UsageError`), 2.
Everything that only a program, and not a library, may do happens here: signal handlers, the choice
of an event loop, logging.

Each command has a module, which its ``configure`` makes known to argparse: what the command does,
its options, and what runs it. Those of disks in object stores share one, :mod:`.disks`. Options
that several commands have are in :mod:`.options`.
"""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

from .. import __version__
from ..errors import Error
from ..text import escape
from . import copy, doctor, list_devices, mount, object_store, serve, top, unmount
from .descriptors import open_standard_descriptors
from .errors import UsageError
from .parser import CommandParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    open_standard_descriptors()
    words = sys.argv[1:] if arguments is None else list(arguments)
    parsed = _parser().parse_args(words, Namespace(words=words))
    terminal = logging.StreamHandler()
    terminal.setFormatter(QuotingFormatter("aiovblk: %(message)s"))
    level = logging.DEBUG if parsed.verbose else logging.WARNING
    logging.basicConfig(level=level, handlers=[terminal])
    logging.getLogger("asyncio").setLevel(logging.INFO)
    command: Callable[[Namespace], int | None] = parsed.command
    try:
        return command(parsed) or 0
    except (Error, OSError, ValueError, TypeError) as exc:
        logging.getLogger("aiovblk").debug("traceback of the error:", exc_info=True)
        print(f"aiovblk: {escape(_format_error(exc))}", file=sys.stderr)
        return 2 if isinstance(exc, UsageError) else 1
    except KeyboardInterrupt:
        return 130


class QuotingFormatter(logging.Formatter):
    """Shows what a log message quotes of others as what it is, and not as terminal escapes.

    Line breaks are left to other packages, whose messages may have some of their own.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the line, without the traceback that may follow it."""
        text = super().formatMessage(record)
        if record.name.partition(".")[0] == "aiovblk":
            return escape(text)
        return _escaped_lines(text)

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """Return a traceback, which ends in what an exception says."""
        return _escaped_lines(super().formatException(ei))


def _escaped_lines(text: str) -> str:
    return "\n".join(map(escape, text.split("\n")))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="aiovblk", description="Virtual block devices from Python.")
    parser.add_argument("--version", action="version", version=f"aiovblk {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    add = parser.add_subparsers(
        required=True, metavar="COMMAND", parser_class=CommandParser
    ).add_parser
    mount.configure(add("mount", help="serve a device until Ctrl-C"))
    serve.configure(add("serve", help="serve devices to NBD clients until Ctrl-C"))
    unmount.configure(add("unmount", help="unmount a device, whoever serves it"))
    list_devices.configure(add("list", help="show the devices that are mounted"))
    top.configure(add("top", help="show what the devices are doing, again and again"))
    doctor.configure(add("doctor", help="find out what is wrong, and what mends it"))
    copy.configure(add("copy", help="copy one device to another"))
    object_store.configure_create(add("create", help="make a disk in an object store"))
    object_store.configure_snapshot(add("snapshot", help="take, list or drop snapshots of a disk"))
    object_store.configure_clone(add("clone", help="make a disk of a snapshot, copying nothing"))
    object_store.configure_gc(add("gc", help="delete what no disk and no snapshot needs"))
    object_store.configure_check(add("check", help="find out whether a disk is intact"))
    return parser


def _format_error(exc: Exception) -> str:
    """An exception's message, without the number that OSError puts before it."""
    if isinstance(exc, OSError) and not isinstance(exc, Error) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    return str(exc)
