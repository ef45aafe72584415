"""``aiovblk unmount``: unmount a device, whichever process serves it."""

from __future__ import annotations

from argparse import Namespace

from .. import kernel
from . import values
from .options import add_seconds
from .parser import CommandParser


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = "%(prog)s [OPTION...] /dev/nbdN"
    parser.description = "Write back what is cached, disconnect, and wait until the device is free."
    parser.add_argument("path", type=values.text, metavar="/dev/nbdN", help="the device")
    parser.add_argument(
        "--force",
        action="store_true",
        help="even if it is in use, or its server does not answer; unwritten data is lost",
    )
    add_seconds(parser, "--timeout", 30.0, "for the server to answer, at each step")
    parser.show_examples(
        ("unmount a device in order", "aiovblk unmount /dev/nbd0"),
        ("one whose server hangs", "aiovblk unmount --force --timeout 5 /dev/nbd0"),
    )
    parser.set_defaults(command=unmount)


def unmount(arguments: Namespace) -> None:
    """Unmount the device at ``arguments.path``."""
    kernel.unmount(arguments.path, force=arguments.force, timeout=arguments.timeout)
