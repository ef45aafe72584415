"""``aiovblk unmount``: unmount a device, whichever process serves it."""

from __future__ import annotations

from argparse import Namespace

from .. import kernel, ublk
from ..ublk.attachment import node
from . import values
from .attached import NODE, resolve, ublk_number
from .options import add_seconds
from .parser import CommandParser


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = f"%(prog)s [OPTION...] {NODE}"
    parser.description = (
        "Write back what is cached, disconnect, and wait until the device is free. Of a ublk "
        "device whose server is gone the rest is removed."
    )
    parser.add_argument("path", type=values.text, metavar=NODE, help="the device")
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
    force, timeout = arguments.force, arguments.timeout
    number = ublk_number(resolve(arguments.path))
    if number is not None:
        ublk.unmount(node(number), force=force, timeout=timeout)
    else:
        kernel.unmount(arguments.path, force=force, timeout=timeout)
