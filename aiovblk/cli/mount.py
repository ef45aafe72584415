"""``aiovblk mount``: serve a device to the kernel until a signal, or `aiovblk unmount`."""

from __future__ import annotations

import asyncio
import logging
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import get_args

from .. import ublk
from ..arguments import MAX_WORKERS
from ..contract import PAGE_SIZE
from ..device import BlockDevice, DeviceFactory
from ..errors import DeviceBusyError
from ..kernel import RequestQueue
from ..kernel.request_queue import MAX_READ_AHEAD_KB, MAX_REQUEST_KB
from ..kernel.sysfs import Disk
from ..kernel.unmounting import ensure_released
from ..mounting import UNMOUNT_TIMEOUT, Attach, Mount, mounted
from ..mounting.attaching import REQUEST_TIMEOUT, SURVIVING_REQUEST_TIMEOUT
from ..storage.http import redact_url
from ..ublk.attachment import disk_name
from . import values
from .attached import NODE, is_named_as_ublk
from .bitmap import bitmap_mounted
from .control import Commands, taking_commands
from .errors import UsageError
from .layers import Layers, open_stack, stack_for_worker
from .limit import limit_mounted
from .options import SPEC_HELP, add_device, add_handling, add_loop, add_number, add_seconds
from .parser import CommandParser, Options
from .reparent import Upgrade
from .resize import resize_mounted
from .runner import async_command, run_until_signal, warning_of_slow_requests
from .sectors import check_whole_sectors, warn_of_other_sectors
from .spec import find_scheme, open_spec
from .systemd import Notifier

logger = logging.getLogger("aiovblk")


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = f"%(prog)s [OPTION...] SPEC [{NODE}]"
    parser.description = (
        "Serve a device to this machine's kernel until Ctrl-C, SIGTERM or `aiovblk unmount`; a "
        "second signal unmounts by force. Prints `mounted /dev/nbdN` once it can be used."
    )
    parser.add_argument("spec", metavar="SPEC", help=f"what to serve: {SPEC_HELP}")
    parser.add_argument(
        "path",
        type=values.text,
        metavar=NODE,
        nargs="?",
        help="the device node; by default any free one",
    )
    add_device(parser, minimum=512, maximum=PAGE_SIZE)
    add_handling(parser)
    _add_kernel(parser)
    _add_handover(parser)
    add_loop(parser)
    parser.show_examples(
        ("a disk in memory, at any free node", "aiovblk mount memory:1G"),
        (
            "a disk in a bucket, made if it does not exist, with a cache in a file",
            "aiovblk mount 's3://bucket/disk?size=100G' /dev/nbd0 --cache 2G --cache-path cache",
        ),
        ("served by the kernel's ublk driver", "aiovblk mount memory:1G --attach ublk"),
        (
            "an image that stays unchanged, at 50 MiB/s at most",
            "aiovblk mount file:disk.img --layer limit:rate=50M --overlay changes",
        ),
    )
    parser.set_defaults(command=async_command(mount_until_signal))


def _add_kernel(parser: CommandParser) -> None:
    group = parser.add_argument_group("kernel")
    group.add_argument(
        "--attach",
        choices=get_args(Attach),
        default="auto",
        help="how to attach; auto is netlink where possible, else ioctl, and the device is "
        "/dev/nbdN; ublk, which is experimental, makes /dev/ublkbN (default %(default)s)",
    )
    add_number(
        group,
        "--connections",
        1,
        "connections between the kernel and the device; the kernel uses one per processor",
        maximum=MAX_WORKERS,
    )
    group.add_argument(
        "--timeout",
        type=values.seconds,
        metavar="SECONDS",
        help="time limit for answering a request; then the kernel closes its connection (default: "
        f"no limit with one connection, {REQUEST_TIMEOUT:g} with several, "
        f"{SURVIVING_REQUEST_TIMEOUT:g} with several and --survive)",
    )
    _add_queue(group)
    group.add_argument(
        "--partitions",
        action="store_true",
        help="also wait until the nodes of its partitions exist",
    )
    add_seconds(group, "--unmount-timeout", UNMOUNT_TIMEOUT, "for answering while unmounting")
    parser.set_variables(unmount_timeout="AIOVBLK_UNMOUNT_TIMEOUT")


def _add_handover(parser: CommandParser) -> None:
    group = parser.add_argument_group("surviving crashes and upgrades")
    group.add_argument(
        "--identity",
        type=values.text,
        metavar="NAME",
        help="name of the device for later servers; if a device of this name has lost its server, "
        "take it over",
    )
    group.add_argument(
        "--survive",
        type=values.seconds,
        metavar="SECONDS",
        help="if this server is killed, I/O of the device blocks up to this long for another "
        "server of its identity (default: not at all)",
    )
    group.add_argument(
        "--replace",
        action="store_true",
        help="take the device over from its running server, which hands it over and ends; a server "
        "that gets SIGUSR2 starts its own command line so, to upgrade without interruption",
    )
    group.add_argument(
        "--memory-safe",
        action="store_true",
        help="keep serving when memory is short: PR_SET_IO_FLUSHER, mlockall, oom_score_adj",
    )


def _add_queue(group: Options) -> None:
    default = RequestQueue()
    add_number(
        group,
        "--max-sectors-kb",
        default.max_sectors_kb,
        "largest request of the kernel",
        metavar="KIB",
        minimum=4,
        maximum=MAX_REQUEST_KB,
        step=4,
    )
    add_number(
        group,
        "--read-ahead-kb",
        default.read_ahead_kb,
        "read-ahead of the kernel for sequential reads",
        metavar="KIB",
        minimum=0,
        maximum=MAX_READ_AHEAD_KB,
        step=4,
    )
    group.add_argument(
        "--scheduler",
        type=values.text,
        default=default.scheduler,
        metavar="NAME",
        help="the kernel's I/O scheduler (default %(default)s)",
    )


async def mount_until_signal(arguments: Namespace) -> None:
    """Serve ``arguments.spec`` to the kernel; return once it is unmounted."""
    _check_combinations(arguments)
    unmounts: set[asyncio.Task[None]] = set()

    forced: list[Mount] = []

    def end(mount: Mount, force: bool) -> None:
        if force:
            forced.append(mount)
        # Not awaited, so that the next signal is received.
        unmounts.add(asyncio.create_task(_unmount(mount, force=force)))

    await run_until_signal(partial(_serve, arguments), end)
    check = ublk.ensure_released if arguments.attach == "ublk" else ensure_released
    for mount in forced[:1]:
        await asyncio.to_thread(check, mount.index, mount.path)


def _check_combinations(arguments: Namespace) -> None:
    """Refuse options that need, or exclude, others."""
    _check_driver(arguments)
    if arguments.identity is None:
        for option in ("survive", "replace"):
            if getattr(arguments, option):
                raise UsageError(f"--{option} needs --identity NAME, to find the device again")
    elif arguments.attach == "ioctl":
        raise UsageError("--identity needs netlink: leave --attach ioctl out")
    if arguments.workers is not None and arguments.connections != 1:
        raise UsageError("each worker has one connection: leave --connections out")


def _check_driver(arguments: Namespace) -> None:
    """Refuse what one of the drivers, NBD and ublk, does not have."""
    path = arguments.path
    is_ublk_node = path is not None and is_named_as_ublk(path)
    if arguments.attach != "ublk":
        if is_ublk_node:
            raise UsageError(f"{path} is a ublk device: add --attach ublk, or name /dev/nbdN")
        return
    if path is not None and not is_ublk_node:
        raise UsageError(
            f"{path} is no ublk device: name /dev/ublkbN, or none for any, or leave --attach ublk"
            " out"
        )
    for option in ("workers", "timeout"):
        if getattr(arguments, option):
            raise UsageError(f"ublk has no --{option}: leave it out, or --attach ublk")
    if arguments.connections != 1:
        raise UsageError("a ublk device has one queue: leave --connections out, or --attach ublk")


async def _serve(arguments: Namespace, live: asyncio.Future[Mount]) -> None:
    async with (
        _open_device(arguments) as device,
        mounted(
            device,
            arguments.path,
            attach=arguments.attach,
            connections=arguments.connections,
            workers=arguments.workers,
            concurrency=arguments.concurrency,
            handler_timeout=arguments.handler_timeout,
            slow_request=arguments.slow_request,
            busy_poll=arguments.busy_poll,
            timeout=arguments.timeout,
            unmount_timeout=arguments.unmount_timeout,
            queue=RequestQueue(
                max_sectors_kb=arguments.max_sectors_kb,
                read_ahead_kb=arguments.read_ahead_kb,
                scheduler=arguments.scheduler,
            ),
            identity=arguments.identity,
            survive=arguments.survive,
            replace=arguments.replace,
            partitions=arguments.partitions,
            memory_safe=arguments.memory_safe,
        ) as mount,
    ):
        live.set_result(mount)
        upgrade = Upgrade(arguments.words, mount, Notifier())
        print(f"mounted {mount.path}", flush=True)
        with warning_of_slow_requests(mount.events()):
            async with taking_commands(_disk(arguments, mount), _commands(mount)):
                await mount.wait()
        upgrade.end()


def _disk(arguments: Namespace, mount: Mount) -> Disk:
    return disk_name(mount.index) if arguments.attach == "ublk" else mount.index


def _commands(mount: Mount) -> Commands:
    return {
        "resize": partial(resize_mounted, mount),
        "limit": partial(limit_mounted, mount),
        "bitmap": partial(bitmap_mounted, mount),
    }


@asynccontextmanager
async def _open_device(arguments: Namespace) -> AsyncIterator[BlockDevice | DeviceFactory]:
    layers = Layers.of(arguments)
    spec, read_only, block_size = arguments.spec, arguments.read_only, arguments.block_size
    if arguments.workers is not None:
        if find_scheme(spec).reopens and not arguments.replace:
            async with open_spec(spec, read_only=True, block_size=block_size) as device:
                await _check_sectors(device, spec)
                await device.unmount()
        yield partial(stack_for_worker, spec, layers, read_only=read_only, block_size=block_size)
        return
    async with AsyncExitStack() as stack:

        async def make() -> BlockDevice:
            device = open_stack(spec, layers, read_only=read_only, block_size=block_size)
            return await stack.enter_async_context(device)

        if arguments.replace:
            # Opened after the other server has closed it: a file is locked.
            yield make
            return
        device = await make()
        await _check_sectors(device, spec)
        yield device


async def _check_sectors(device: BlockDevice, spec: str) -> None:
    """Check the size and the partition table; unmount the device if it cannot be mounted."""
    try:
        check_whole_sectors(device, redact_url(spec))
        await warn_of_other_sectors(device, redact_url(spec))
    except BaseException:
        await device.unmount()
        raise


async def _unmount(mount: Mount, *, force: bool) -> None:
    try:
        await mount.unmount(force=force)
    except DeviceBusyError as exc:
        logger.error("%s; still serving; signal again to force", exc)
    except Exception:
        pass  # mount.wait() raises it, too
