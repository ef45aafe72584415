"""Options that several commands have."""

from __future__ import annotations

from argparse import ArgumentParser

from ..dispatch import MAX_CONCURRENCY, SLOW_REQUEST
from .layers import add_layers

SPEC_HELP = """memory:SIZE, file:PATH (a file or block device, which is written to),
nbd://HOST/EXPORT or another NBD URI, s3://BUCKET/FOLDER (gs, az; folder:PATH), where size=10G makes
what is not there, https://HOST/FILE (read-only), package.module:attribute or
path/to/file.py:attribute; the attribute is a BlockDevice, a subclass of it, or a function, async or
not, that returns one"""


def add_handling(parser: ArgumentParser) -> None:
    """Add how requests are handled, and what lies on the device."""
    parser.add_argument("--read-only", action="store_true", help="refuse every change")
    add_layers(parser)
    add_number(parser, "--concurrency", MAX_CONCURRENCY, "how many handlers may run at once")
    add_seconds(parser, "--handler-timeout", None, "for a handler, or its request fails")
    parser.add_argument(
        "--slow-request",
        type=float,
        default=SLOW_REQUEST,
        metavar="SECONDS",
        help="how long a handler may run before it is told of on stderr (default %(default)s)",
    )
    add_loop(parser)


def add_workers(parser: ArgumentParser) -> None:
    """Add how many processes serve."""
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that serve together, each with what SPEC names for itself",
    )


def add_loop(parser: ArgumentParser) -> None:
    """Add which event loop runs the command; see :func:`.running.in_loop`."""
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")


def add_progress(parser: ArgumentParser) -> None:
    """Add whether a bar is shown; see :func:`.progress.progress`."""
    parser.add_argument(
        "--no-progress", dest="progress", action="store_false", help="show no progress bar"
    )


def add_number(
    parser: ArgumentParser, name: str, default: int | None, what: str, *, metavar: str = "N"
) -> None:
    """Add a whole number.

    Args:
        parser: of the command.
        name: of the option.
        default: where it is not given.
        what: the help, to which the default is added.
        metavar: the unit, or what else stands for the number.

    """
    parser.add_argument(
        name, type=int, default=default, metavar=metavar, help=f"{what} (default %(default)s)"
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
        type=float,
        default=default,
        metavar="SECONDS",
        help=f"how long it may take {what} (default {told})",
    )
