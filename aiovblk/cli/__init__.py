"""The command line: ``aiovblk mount | serve | unmount | list | top | doctor | copy`` and more.

An error is one line on stderr and exit status 1; a wrong call (:class:`.errors.UsageError`) is exit
status 2. Everything that only a program, not a library, may do happens here: signal handlers, the
choice of an event loop, logging.

Each command has a module; its ``configure`` gives argparse the command's description, options and
function. The commands for disks in object stores share one, :mod:`.object_store`. Options that
several commands have are in :mod:`.options`, what opens a SPEC is in :mod:`.spec`.
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
    """Run one command; return its exit status."""
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
    """Escape control characters in log messages, so that quoted input cannot control the terminal.

    Line breaks stay in the messages of other packages, which may have several lines.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Format the line, without the traceback that may follow it."""
        text = super().formatMessage(record)
        if record.name.partition(".")[0] == "aiovblk":
            return escape(text)
        return _escaped_lines(text)

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """Format a traceback; it contains the exception's message, which may quote input."""
        return _escaped_lines(super().formatException(ei))


def _escaped_lines(text: str) -> str:
    return "\n".join(map(escape, text.split("\n")))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="aiovblk", description="Virtual block devices from Python.")
    parser.add_argument("--version", action="version", version=f"aiovblk {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done")
    add = parser.add_subparsers(
        required=True, metavar="COMMAND", parser_class=CommandParser
    ).add_parser
    mount.configure(add("mount", help="serve a device until Ctrl-C"))
    serve.configure(add("serve", help="serve devices to NBD clients until Ctrl-C"))
    unmount.configure(add("unmount", help="unmount a device of any process"))
    list_devices.configure(add("list", help="show the attached devices and their users"))
    top.configure(add("top", help="show throughput and latency of the devices, live"))
    doctor.configure(add("doctor", help="diagnose problems and suggest fixes"))
    copy.configure(add("copy", help="copy one device to another"))
    object_store.configure_create(add("create", help="make a disk in an object store"))
    object_store.configure_snapshot(add("snapshot", help="take, list or drop snapshots of a disk"))
    object_store.configure_clone(add("clone", help="make a disk from a snapshot, without copying"))
    object_store.configure_gc(
        add("gc", help="collect garbage: delete what no disk or snapshot needs")
    )
    object_store.configure_check(add("check", help="verify that a disk is intact"))
    object_store.configure_convert(add("convert", help="give a disk the present format, in place"))
    return parser


def _format_error(exc: Exception) -> str:
    """Return the message of an exception, without the number that OSError puts before it."""
    if isinstance(exc, OSError) and not isinstance(exc, Error) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    return str(exc)
