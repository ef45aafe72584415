"""The command line: ``aiovblk mount | serve | unmount | list | top | doctor | copy`` and more.

An error is one line on stderr and exit status 1; a wrong call, 2. Everything that only a program,
and not a library, may do happens here: signal handlers, the choice of an event loop, logging.
"""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import get_args

from .. import __version__, kernel
from ..dispatch import MAX_CONCURRENCY, SLOW_REQUEST
from ..errors import Error
from ..kernel import RequestQueue
from ..mount import UNMOUNT_TIMEOUT, Attach
from ..server import DRAIN_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_CONNECTIONS
from ..storage.copying import REQUESTS
from . import disks, doctor, listing, top
from .copy import copy_device
from .layers import add_layers
from .mount import mount_until_signal
from .running import in_loop
from .serve import serve_until_signal

SPEC_HELP = """memory:SIZE, file:PATH (a file or block device, which is written to),
nbd://HOST/EXPORT or another NBD URI, s3://BUCKET/FOLDER (gs, az; folder:PATH), where size=10G makes
what is not there, https://HOST/FILE (read-only), package.module:attribute or
path/to/file.py:attribute; the attribute is a BlockDevice, a subclass of it, or a function, async or
not, that returns one"""

DISK_HELP = """s3://BUCKET/FOLDER, gs://, az:// or folder:PATH, a disk in an object store;
credentials come from the environment, and the key of one that is encrypted from the file that
AIOVBLK_KEY_FILE names"""

CERTIFICATES_HELP = "server-cert.pem and server-key.pem, for TLS; ca-cert.pem, to verify clients"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parsed = _parser().parse_args(words, Namespace(words=words))
    logging.basicConfig(
        level=logging.DEBUG if parsed.verbose else logging.WARNING, format="aiovblk: %(message)s"
    )
    logging.getLogger("asyncio").setLevel(logging.INFO)
    command: Callable[[Namespace], int | None] = parsed.command
    try:
        return command(parsed) or 0
    except (Error, OSError, ValueError, TypeError) as exc:
        logging.getLogger("aiovblk").debug("traceback of the error:", exc_info=True)
        print(f"aiovblk: {_in_words(exc)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="aiovblk", description="Virtual block devices from Python.")
    parser.add_argument("--version", action="version", version=f"aiovblk {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_mount(commands.add_parser("mount", help="serve a device until Ctrl-C"))
    _add_serve(commands.add_parser("serve", help="serve devices to NBD clients until Ctrl-C"))
    _add_unmount(commands.add_parser("unmount", help="unmount a device, whoever serves it"))
    _add_list(commands.add_parser("list", help="show the devices that are mounted"))
    _add_top(commands.add_parser("top", help="show what the devices are doing, again and again"))
    _add_doctor(commands.add_parser("doctor", help="find out what is wrong, and what mends it"))
    _add_copy(commands.add_parser("copy", help="copy one device to another"))
    _add_create(commands.add_parser("create", help="make a disk in an object store"))
    _add_snapshot(commands.add_parser("snapshot", help="take, list or drop snapshots of a disk"))
    _add_clone(commands.add_parser("clone", help="make a disk of a snapshot, copying nothing"))
    _add_gc(commands.add_parser("gc", help="delete what no disk and no snapshot needs"))
    _add_check(commands.add_parser("check", help="find out whether a disk is intact"))
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
    _add_handling(parser)
    parser.add_argument(
        "--attach",
        choices=get_args(Attach),
        default="auto",
        help="how; auto is netlink where it can be, else ioctl (default %(default)s)",
    )
    _add_workers(parser)
    parser.add_argument(
        "--connections",
        type=int,
        default=1,
        metavar="N",
        help="between the kernel and the device; it uses one per processor (default %(default)s)",
    )
    _add_seconds(parser, "--timeout", None, "to answer a request, or its connection is given up")
    _add_queue(parser)
    _add_surviving(parser)
    parser.add_argument(
        "--partitions",
        action="store_true",
        help="wait until the nodes of its partitions are there, too",
    )
    parser.add_argument(
        "--memory-safe",
        action="store_true",
        help="serve although memory is short: PR_SET_IO_FLUSHER, mlockall, oom_score_adj",
    )
    _add_seconds(parser, "--unmount-timeout", UNMOUNT_TIMEOUT, "to answer while unmounting")
    parser.set_defaults(command=in_loop(mount_until_signal))


def _add_serve(parser: ArgumentParser) -> None:
    parser.description = (
        "Serve devices over the NBD protocol until Ctrl-C or SIGTERM, which let requests in flight "
        "end; a second signal forces. Listens on localhost, port 10809, unless told otherwise, or "
        "on the sockets that systemd passes on. Prints `serving URI` for each export once it can "
        "be used."
    )
    parser.add_argument(
        "specs",
        metavar="SPEC | NAME=SPEC",
        nargs="+",
        help=f"NAME is what clients ask for; SPEC is {SPEC_HELP}",
    )
    parser.add_argument("--socket", metavar="PATH", help="listen on a Unix socket")
    parser.add_argument("--host", metavar="H", help="listen on this address; '' for all there are")
    parser.add_argument("--port", type=int, metavar="N", help="listen on this port; 0 for any")
    parser.add_argument(
        "--stdio", action="store_true", help="serve the one client at standard input and output"
    )
    parser.add_argument("--description", default="", metavar="TEXT", help="of the exports")
    parser.add_argument("--tls-certificates", metavar="DIRECTORY", help=CERTIFICATES_HELP)
    parser.add_argument(
        "--tls-psk-file", metavar="FILE", help="pre-shared keys for TLS, lines of USER:HEXKEY"
    )
    parser.add_argument(
        "--tls",
        choices=["require", "offer"],
        help="whether clients have to use TLS (default: require)",
    )
    parser.add_argument(
        "--tls-verify-peer", action="store_true", help="let in only who has a certificate"
    )
    parser.add_argument(
        "--max-connections",
        type=int,
        default=MAX_CONNECTIONS,
        metavar="N",
        help="clients at once (default %(default)s)",
    )
    _add_handling(parser)
    _add_workers(parser)
    _add_seconds(
        parser, "--handshake-timeout", HANDSHAKE_TIMEOUT, "for a client to choose its export"
    )
    _add_seconds(parser, "--drain-timeout", DRAIN_TIMEOUT, "for requests in flight at the end")
    parser.set_defaults(command=in_loop(serve_until_signal))


def _add_copy(parser: ArgumentParser) -> None:
    parser.description = (
        "Copy a device to the beginning of another. What reads as zeroes becomes holes, where the "
        "target can have some. A file that does not exist is made."
    )
    parser.add_argument("source", metavar="SPEC", help=SPEC_HELP)
    parser.add_argument("target", metavar="SPEC")
    parser.add_argument(
        "--requests",
        type=int,
        default=REQUESTS,
        metavar="N",
        help="requests in flight (default %(default)s)",
    )
    _add_progress(parser)
    _add_loop(parser)
    parser.set_defaults(command=in_loop(copy_device))


def _add_create(parser: ArgumentParser) -> None:
    parser.description = (
        "Make a disk in an object store: s3://BUCKET/FOLDER?size=10G. Further options, after &: "
        "chunk_size=1M, block_size=4K, compress=yes. If AIOVBLK_KEY_FILE names the file of a key, "
        "the disk is encrypted with it."
    )
    parser.add_argument("spec", metavar="SPEC", help=DISK_HELP)
    _add_loop(parser)
    parser.set_defaults(command=in_loop(disks.create))


def _add_snapshot(parser: ArgumentParser) -> None:
    parser.description = (
        "Give the present state of a disk a name; without one, list those that there are. The disk "
        "may be mounted: what was flushed is in it. SPEC?snapshot=NAME mounts it, read-only."
    )
    parser.add_argument("spec", metavar="SPEC", help=DISK_HELP)
    parser.add_argument("name", metavar="NAME", nargs="?")
    parser.add_argument("--drop", action="store_true", help="give the snapshot up")
    _add_loop(parser)
    parser.set_defaults(command=in_loop(disks.snapshot))


def _add_clone(parser: ArgumentParser) -> None:
    parser.description = (
        "Make a disk that begins as a snapshot of another and shares what it does not change with "
        "it. Takes as long as a request or two, whatever the size."
    )
    parser.add_argument("spec", metavar="SPEC?snapshot=NAME", help=DISK_HELP)
    parser.add_argument("target", metavar="SPEC", help="the new disk, in the same bucket")
    _add_loop(parser)
    parser.set_defaults(command=in_loop(disks.clone))


def _add_gc(parser: ArgumentParser) -> None:
    parser.description = (
        "Delete what crashed writers have left, and what dropped snapshots alone have needed. The "
        "disk may be mounted."
    )
    parser.add_argument("spec", metavar="SPEC", help=DISK_HELP)
    parser.add_argument("--dry-run", action="store_true", help="only say what it would delete")
    _add_loop(parser)
    parser.set_defaults(command=in_loop(disks.collect_garbage))


def _add_check(parser: ArgumentParser) -> None:
    parser.description = (
        "Read a disk and its snapshots, and verify that everything is there and unchanged. Exit "
        "status 1 and a line for each problem if not. Changes nothing; best while nobody writes."
    )
    parser.add_argument("spec", metavar="SPEC", help=DISK_HELP)
    parser.add_argument("--quick", action="store_true", help="only look whether all is there")
    _add_progress(parser)
    _add_loop(parser)
    parser.set_defaults(command=in_loop(disks.check))


def _add_progress(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--no-progress", dest="progress", action="store_false", help="show no progress bar"
    )


def _add_handling(parser: ArgumentParser) -> None:
    parser.add_argument("--read-only", action="store_true", help="refuse every change")
    add_layers(parser)
    parser.add_argument(
        "--concurrency",
        type=int,
        default=MAX_CONCURRENCY,
        metavar="N",
        help="how many handlers may run at once (default %(default)s)",
    )
    _add_seconds(parser, "--handler-timeout", None, "for a handler, or its request fails")
    parser.add_argument(
        "--slow-request",
        type=float,
        default=SLOW_REQUEST,
        metavar="SECONDS",
        help="how long a handler may run before it is told of on stderr (default %(default)s)",
    )
    _add_loop(parser)


def _add_loop(parser: ArgumentParser) -> None:
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")


def _add_workers(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that serve together, each with what SPEC names for itself",
    )


def _add_surviving(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--identity",
        metavar="NAME",
        help="what the device is known by; one of that name whose server is gone is taken over",
    )
    parser.add_argument(
        "--survive",
        type=float,
        metavar="SECONDS",
        help="for how long whoever uses the device waits for another server of its identity, "
        "should this one be killed (default: not at all)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="take the device over from the server that it has, which hands it over and ends; "
        "a server does that by itself, to its own command line, when it gets SIGUSR2",
    )


def _add_queue(parser: ArgumentParser) -> None:
    default = RequestQueue()
    parser.add_argument(
        "--max-sectors-kb",
        type=int,
        default=default.max_sectors_kb,
        metavar="KIB",
        help="the kernel's largest request (default %(default)s)",
    )
    parser.add_argument(
        "--read-ahead-kb",
        type=int,
        default=default.read_ahead_kb,
        metavar="KIB",
        help="what the kernel reads before it is asked for (default %(default)s)",
    )
    parser.add_argument(
        "--scheduler",
        default=default.scheduler,
        metavar="NAME",
        help="the kernel's I/O scheduler (default %(default)s)",
    )


def _add_seconds(parser: ArgumentParser, name: str, default: float | None, what: str) -> None:
    told = "no limit" if default is None else "%(default)s"
    parser.add_argument(
        name,
        type=float,
        default=default,
        metavar="SECONDS",
        help=f"how long it may take {what} (default {told})",
    )


def _add_unmount(parser: ArgumentParser) -> None:
    parser.description = "Write back what is cached, disconnect, and wait until the device is free."
    parser.add_argument("path", metavar="/dev/nbdN")
    parser.add_argument(
        "--force",
        action="store_true",
        help="although it is in use, or its server does not answer; unwritten data is lost",
    )
    _add_seconds(parser, "--timeout", 30.0, "a server to answer at each step")
    parser.set_defaults(command=_unmount)


def _add_list(parser: ArgumentParser) -> None:
    parser.description = "Show the NBD devices that are attached, and who uses them."
    parser.add_argument("--json", action="store_true", help="as a JSON array; sizes in bytes")
    parser.set_defaults(command=_list)


def _add_top(parser: ArgumentParser) -> None:
    parser.description = (
        "Show what the attached NBD devices are doing, whoever serves them, as the kernel counts "
        "it, until Ctrl-C. MB are millions of bytes; MEAN MS is what a request takes on average."
    )
    parser.add_argument("--once", action="store_true", help="print one table, and end")
    parser.add_argument(
        "--interval",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="from one table to the next (default %(default)s)",
    )
    parser.set_defaults(command=top.watch)


def _add_doctor(parser: ArgumentParser) -> None:
    parser.description = (
        "Look at the kernel, its driver, the nodes, privileges, containers, devices whose server "
        "is gone and programs that hang. A line for each finding: ok, info, warn or fail, and the "
        "command that mends it. Exit status 1 when something fails."
    )
    parser.add_argument("--json", action="store_true", help="as a JSON array")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="free the devices whose server is gone; ends programs that have them open",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what --clean would do")
    parser.set_defaults(command=doctor.run)


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
