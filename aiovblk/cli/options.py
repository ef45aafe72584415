"""Define the options that several commands have, and the help for a SPEC."""

from __future__ import annotations

from ..arguments import MAX_BLOCK_SIZE, MAX_BUSY_POLL, MAX_WORKERS
from ..dispatch import DEFAULT_SLOW_REQUEST, MAX_CONCURRENCY
from . import values
from .layers import add_layers, layers_help
from .parser import CommandParser, Options

SPEC_HELP = """memory:SIZE, file:PATH (a file or block device, which is written to),
nbd://HOST/EXPORT or another NBD URI, s3://BUCKET/FOLDER (gs, az; folder:PATH), where ?size=10G
makes a disk that does not exist, https://HOST/FILE (read-only), package.module:attribute or
path/to/file.py:attribute; the attribute is a BlockDevice, a subclass of it, or a function, async or
not, that returns one; ?block_size=4096 after any of them gives the sector size that its
contents are made for (default 512 for what exists, 4096 for memory and new disks)"""


def add_device(parser: CommandParser, *, minimum: int = 1, maximum: int = MAX_BLOCK_SIZE) -> None:
    """Add the options for what the device is: its block size, layers on it, whether it is written.

    Args:
        parser: of the command.
        minimum: bytes of the smallest block.
        maximum: of the largest.

    """
    group = parser.add_argument_group("device")
    add_block_size(group, minimum=minimum, maximum=maximum)
    group.add_argument("--read-only", action="store_true", help="refuse all writes")
    add_layers(parser.add_argument_group("layers", layers_help()))


def add_handling(parser: CommandParser) -> None:
    """Add the options for handling requests."""
    group = parser.add_argument_group("requests")
    add_number(group, "--concurrency", MAX_CONCURRENCY, "handlers that may run at the same time")
    add_seconds(group, "--handler-timeout", None, "for a handler; then its request fails")
    group.add_argument(
        "--slow-request",
        type=values.seconds,
        default=DEFAULT_SLOW_REQUEST,
        metavar="SECONDS",
        help="log a handler that runs longer than this on stderr (default %(default)s)",
    )
    group.add_argument(
        "--busy-poll",
        type=values.count(maximum=MAX_BUSY_POLL),
        metavar="MICROSECONDS",
        help="poll for the next request for this long before sleeping; uses up a processor",
    )
    group.add_argument(
        "--workers",
        type=values.count(maximum=MAX_WORKERS),
        metavar="N",
        help="serve by N worker processes, each of which opens SPEC for itself",
    )
    parser.set_variables(
        concurrency="AIOVBLK_CONCURRENCY",
        handler_timeout="AIOVBLK_HANDLER_TIMEOUT",
        slow_request="AIOVBLK_SLOW_REQUEST",
    )


def add_block_size(options: Options, *, minimum: int = 1, maximum: int = MAX_BLOCK_SIZE) -> None:
    """Add the block size (sector size) of the device, which a SPEC may give as well."""
    options.add_argument(
        "--block-size",
        type=values.block_size(minimum=minimum, maximum=maximum),
        metavar="BYTES",
        help="block size (sector size) of the device, as ?block_size= in each SPEC",
    )


def add_loop(parser: CommandParser) -> None:
    """Add the choice of an event loop; see :func:`.runner.async_command`."""
    parser.add_argument(
        "--loop",
        choices=["uvloop", "asyncio"],
        default="uvloop",
        help="event loop (default %(default)s)",
    )
    parser.set_variables(loop="AIOVBLK_LOOP")


def add_progress(parser: CommandParser) -> None:
    """Add the option for no progress bar; see :func:`.progress.progress`."""
    parser.add_argument(
        "--no-progress", dest="progress", action="store_false", help="show no progress bar"
    )


def add_json(parser: CommandParser) -> None:
    """Add the choice of JSON instead of text for what the command prints."""
    parser.add_argument("--json", action="store_true", help="print JSON; sizes in bytes")


def add_number(
    options: Options,
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
        options: of the command, or a group of them.
        name: of the option.
        default: where it is not given.
        description: the help, to which the default is added.
        metavar: the unit, or another name for the number.
        minimum: the smallest number that is accepted.
        maximum: the largest.
        step: the number must be a multiple of this.

    """
    options.add_argument(
        name,
        type=values.count(minimum=minimum, maximum=maximum, step=step),
        default=default,
        metavar=metavar,
        help=f"{description} (default %(default)s)",
    )


def add_seconds(options: Options, name: str, default: float | None, purpose: str) -> None:
    """Add an option whose value is a timeout in seconds.

    Args:
        options: of the command, or a group of them.
        name: of the option.
        default: seconds; None for no limit.
        purpose: ends the sentence "time limit ...": what is limited, and what happens then.

    """
    shown = "no limit" if default is None else "%(default)s"
    options.add_argument(
        name,
        type=values.seconds,
        default=default,
        metavar="SECONDS",
        help=f"time limit {purpose} (default {shown})",
    )
