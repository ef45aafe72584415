"""Options that several commands have."""

from __future__ import annotations

from argparse import ArgumentParser

from ..arguments import MAX_BLOCK_SIZE, MAX_WORKERS
from ..dispatch import DEFAULT_SLOW_REQUEST, MAX_CONCURRENCY
from . import values
from .layers import add_layers

SPEC_HELP = """memory:SIZE, file:PATH (a file or block device, which is written to),
nbd://HOST/EXPORT or another NBD URI, s3://BUCKET/FOLDER (gs, az; folder:PATH), where size=10G makes
what is not there, https://HOST/FILE (read-only), package.module:attribute or
path/to/file.py:attribute; the attribute is a BlockDevice, a subclass of it, or a function, async or
not, that returns one; ?block_size=4096 after any of them says for which size of sectors its
contents are made (default 512 for what exists elsewhere, 4096 for memory and new disks)"""


def add_handling(parser: ArgumentParser) -> None:
    """Add how requests are handled, and what lies on the device."""
    parser.add_argument("--read-only", action="store_true", help="refuse every change")
    add_layers(parser)
    add_number(parser, "--concurrency", MAX_CONCURRENCY, "how many handlers may run at once")
    add_seconds(parser, "--handler-timeout", None, "for a handler, or its request fails")
    parser.add_argument(
        "--slow-request",
        type=values.seconds,
        default=DEFAULT_SLOW_REQUEST,
        metavar="SECONDS",
        help="how long a handler may run before it is told of on stderr (default %(default)s)",
    )
    add_loop(parser)


def add_workers(parser: ArgumentParser) -> None:
    """Add how many processes serve."""
    parser.add_argument(
        "--workers",
        type=values.count(most=MAX_WORKERS),
        metavar="N",
        help="processes that serve together, each with what SPEC names for itself",
    )


def add_block_size(parser: ArgumentParser, *, least: int = 1, most: int = MAX_BLOCK_SIZE) -> None:
    """Add the size of the device's blocks, which a SPEC may give as well."""
    parser.add_argument(
        "--block-size",
        type=values.block_size(least=least, most=most),
        metavar="BYTES",
        help="of the device's blocks (sectors), as ?block_size= in each SPEC",
    )


def add_loop(parser: ArgumentParser) -> None:
    """Add which event loop runs the command; see :func:`.running.async_command`."""
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")


def add_progress(parser: ArgumentParser) -> None:
    """Add whether a bar is shown; see :func:`.progress.progress`."""
    parser.add_argument(
        "--no-progress", dest="progress", action="store_false", help="show no progress bar"
    )


def add_number(
    parser: ArgumentParser,
    name: str,
    default: int | None,
    what: str,
    *,
    metavar: str = "N",
    least: int = 1,
    most: int = 2**31 - 1,
    step: int = 1,
) -> None:
    """Add a whole number.

    Args:
        parser: of the command.
        name: of the option.
        default: where it is not given.
        what: the help, to which the default is added.
        metavar: the unit, or what else stands for the number.
        least: the smallest that it may be.
        most: the largest.
        step: what it must be a multiple of.

    """
    parser.add_argument(
        name,
        type=values.count(least=least, most=most, step=step),
        default=default,
        metavar=metavar,
        help=f"{what} (default %(default)s)",
    )


def add_seconds(parser: ArgumentParser, name: str, default: float | None, what: str) -> None:
    """Add a deadline.

    Args:
        parser: of the command.
        name: of the option.
        default: seconds; None for no limit.
        what: ends the sentence "how long it may take ...".

    """
    told = "no limit" if default is None else "%(default)s"
    parser.add_argument(
        name,
        type=values.seconds,
        default=default,
        metavar="SECONDS",
        help=f"how long it may take {what} (default {told})",
    )
