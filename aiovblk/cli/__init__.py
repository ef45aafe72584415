"""The command line: ``aiovblk mount | unmount | list``.

An error is one line on stderr and exit status 1; a wrong call, 2. Everything that only a program,
and not a library, may do happens here: signal handlers, the choice of an event loop, logging.
"""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from .. import __version__, kernel
from ..dispatch import MAX_CONCURRENCY
from ..errors import Error
from ..mount import UNMOUNT_TIMEOUT
from . import listing
from . import mount as mounting

SPEC_HELP = """memory:SIZE, file:PATH (a file or block device, which is written to),
package.module:attribute or path/to/file.py:attribute; the attribute is a BlockDevice, a subclass of
it, or a function, async or not, that returns one"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if parsed.verbose else logging.WARNING, format="aiovblk: %(message)s"
    )
    logging.getLogger("asyncio").setLevel(logging.INFO)
    command: Callable[[Namespace], None] = parsed.command
    try:
        command(parsed)
    except (Error, OSError, ValueError, TypeError) as exc:
        logging.getLogger("aiovblk").debug("traceback of the error:", exc_info=True)
        print(f"aiovblk: {_in_words(exc)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="aiovblk", description="Virtual block devices from Python.")
    parser.add_argument("--version", action="version", version=f"aiovblk {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_mount(commands.add_parser("mount", help="serve a device until Ctrl-C"))
    _add_unmount(commands.add_parser("unmount", help="unmount a device, whoever serves it"))
    _add_list(commands.add_parser("list", help="show the devices that are mounted"))
    return parser


def _add_mount(parser: ArgumentParser) -> None:
    parser.description = (
        "Serve a device until Ctrl-C, SIGTERM or `aiovblk unmount`; a second signal forces. "
        "Prints `mounted /dev/nbdN` once it can be used."
    )
    parser.add_argument("spec", metavar="SPEC", help=SPEC_HELP)
    parser.add_argument(
        "path", metavar="/dev/nbdN", nargs="?", help="the device; by default any that is free"
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        default=MAX_CONCURRENCY,
        metavar="N",
        help="how many handlers may run at once (default %(default)s)",
    )
    parser.add_argument(
        "--handler-timeout",
        type=float,
        metavar="SECONDS",
        help="fail a request whose handler takes longer (default: never)",
    )
    parser.add_argument(
        "--unmount-timeout",
        type=float,
        default=UNMOUNT_TIMEOUT,
        metavar="SECONDS",
        help="give a request up that hangs while unmounting (default %(default)s)",
    )
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.set_defaults(command=mounting.run)


def _add_unmount(parser: ArgumentParser) -> None:
    parser.description = "Write back what is cached, disconnect, and wait until the device is free."
    parser.add_argument("path", metavar="/dev/nbdN")
    parser.add_argument(
        "--force",
        action="store_true",
        help="although it is in use, or its server does not answer; unwritten data is lost",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long the server may take for a step (default %(default)s)",
    )
    parser.set_defaults(command=_unmount)


def _add_list(parser: ArgumentParser) -> None:
    parser.description = "Show the NBD devices that are attached, and who uses them."
    parser.add_argument("--json", action="store_true", help="as a JSON array; sizes in bytes")
    parser.set_defaults(command=_list)


def _unmount(arguments: Namespace) -> None:
    kernel.unmount(arguments.path, force=arguments.force, timeout=arguments.timeout)


def _list(arguments: Namespace) -> None:
    devices = listing.attached()
    print(listing.as_json(devices) if arguments.json else listing.as_table(devices))


def _in_words(exc: Exception) -> str:
    """An exception's message, without the number that OSError puts before it."""
    if isinstance(exc, OSError) and not isinstance(exc, Error) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    return str(exc)
