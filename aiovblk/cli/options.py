"""Define the options that several commands have, and the help for a SPEC."""

from __future__ import annotations

from argparse import ArgumentParser

from ..arguments import MAX_BLOCK_SIZE, MAX_BUSY_POLL, MAX_WORKERS
from ..dispatch import DEFAULT_SLOW_REQUEST, MAX_CONCURRENCY
from . import values
from .layers import add_layers

SPEC_HELP = """memory:SIZE, file:PATH (a file or block device, which is written to),
nbd://HOST/EXPORT or another NBD URI, s3://BUCKET/FOLDER (gs, az; folder:PATH), where ?size=10G
makes a disk that does not exist, https://HOST/FILE (read-only), package.module:attribute or
path/to/file.py:attribute; the attribute is a BlockDevice, a subclass of it, or a function, async or
not, that returns one; ?block_size=4096 after any of them gives the sector size that its
contents are made for (default 512 for what exists, 4096 for memory and new disks)"""


def add_handling(parser: ArgumentParser) -> None:
    """Add the options for handling requests, and for layers on the device."""
    parser.add_argument("--read-only", action="store_true", help="refuse all writes")
    add_layers(parser)
    add_number(parser, "--concurrency", MAX_CONCURRENCY, "handlers that may run at the same time")
    add_seconds(parser, "--handler-timeout", None, "for a handler; then its request fails")
    parser.add_argument(
        "--slow-request",
        type=values.seconds,
        default=DEFAULT_SLOW_REQUEST,
        metavar="SECONDS",
        help="log a handler that runs longer than this on stderr (default %(default)s)",
    )
    parser.add_argument(
        "--busy-poll",
        type=values.count(maximum=MAX_BUSY_POLL),
        metavar="MICROSECONDS",
        help="poll for the next request for this long before sleeping; uses up a processor",
    )
    add_loop(parser)


def add_workers(parser: ArgumentParser) -> None:
    """Add the number of worker processes."""
    parser.add_argument(
        "--workers",
        type=values.count(maximum=MAX_WORKERS),
        metavar="N",
        help="serve by N worker processes, each of which opens SPEC for itself",
    )


def add_block_size(
    parser: ArgumentParser, *, minimum: int = 1, maximum: int = MAX_BLOCK_SIZE
) -> None:
    """Add the block size (sector size) of the device, which a SPEC may give as well."""
    parser.add_argument(
        "--block-size",
        type=values.block_size(minimum=minimum, maximum=maximum),
        metavar="BYTES",
        help="block size (sector size) of the device, as ?block_size= in each SPEC",
    )


def add_loop(parser: ArgumentParser) -> None:
    """Add the choice of an event loop; see :func:`.runner.async_command`."""
    parser.add_argument(
        "--loop",
        choices=["uvloop", "asyncio"],
        default="uvloop",
        help="event loop (default %(default)s)",
    )


def add_progress(parser: ArgumentParser) -> None:
    """Add the option for no progress bar; see :func:`.progress.progress`."""
    parser.add_argument(
        "--no-progress", dest="progress", action="store_false", help="show no progress bar"
    )


def add_number(
    parser: ArgumentParser,
    name: str,
    default: int | None,
    description: str,
    *,
    metavar: str = "N",
    minimum: int = 1,
    maximum: int = 2**31 - 1,
    step: int = 1,
) -> None:
    """Add an option whose value is a whole number.

    Args:
        parser: of the command.
        name: of the option.
        default: where it is not given.
        description: the help, to which the default is added.
        metavar: the unit, or another name for the number.
        minimum: the smallest number that is accepted.
        maximum: the largest.
        step: the number must be a multiple of this.

    """
    parser.add_argument(
        name,
        type=values.count(minimum=minimum, maximum=maximum, step=step),
        default=default,
        metavar=metavar,
        help=f"{description} (default %(default)s)",
    )


def add_seconds(parser: ArgumentParser, name: str, default: float | None, purpose: str) -> None:
    """Add an option whose value is a timeout in seconds.

    Args:
        parser: of the command.
        name: of the option.
        default: seconds; None for no limit.
        purpose: ends the sentence "time limit ...": what is limited, and what happens then.

    """
    shown = "no limit" if default is None else "%(default)s"
    parser.add_argument(
        name,
        type=values.seconds,
        default=default,
        metavar="SECONDS",
        help=f"time limit {purpose} (default {shown})",
    )
