"""``aiovblk unmount``: unmount a device, whichever process serves it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from .. import kernel
from . import values
from .options import add_seconds


def configure(parser: ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = "Write back what is cached, disconnect, and wait until the device is free."
    parser.add_argument("path", type=values.text, metavar="/dev/nbdN")
    parser.add_argument(
        "--force",
        action="store_true",
        help="even if it is in use, or its server does not answer; unwritten data is lost",
    )
    add_seconds(parser, "--timeout", 30.0, "for the server to answer, at each step")
    parser.set_defaults(command=unmount)


def unmount(arguments: Namespace) -> None:
    """Unmount the device at ``arguments.path``."""
    kernel.unmount(arguments.path, force=arguments.force, timeout=arguments.timeout)
