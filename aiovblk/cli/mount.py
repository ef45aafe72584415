"""``aiovblk mount``: serve a device until a signal, or an unmount from elsewhere."""

from __future__ import annotations

import asyncio
import logging
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from ..device import BlockDevice, Factory
from ..errors import DeviceBusyError
from ..events import SlowRequest
from ..kernel import RequestQueue
from ..mount import Mount, mounted
from . import notify
from .running import until_signal
from .spec import device_for_worker, device_of

logger = logging.getLogger("aiovblk")


async def mount_until_signal(arguments: Namespace) -> None:
    """Serve ``arguments.spec`` to the kernel; returns once it is unmounted."""
    unmounts: set[asyncio.Task[None]] = set()

    def end(mount: Mount, force: bool) -> None:
        # Not awaited, so that the next signal is heard.
        unmounts.add(asyncio.create_task(_unmount(mount, force=force)))

    await until_signal(partial(_serve, arguments), end)


async def _serve(arguments: Namespace, live: asyncio.Future[Mount]) -> None:
    async with (
        _served(arguments) as device,
        mounted(
            device,
            arguments.path,
            attach=arguments.attach,
            connections=arguments.connections,
            workers=arguments.workers,
            concurrency=arguments.concurrency,
            handler_timeout=arguments.handler_timeout,
            slow_request=arguments.slow_request,
            timeout=arguments.timeout,
            unmount_timeout=arguments.unmount_timeout,
            queue=RequestQueue(
                max_sectors_kb=arguments.max_sectors_kb,
                read_ahead_kb=arguments.read_ahead_kb,
                scheduler=arguments.scheduler,
            ),
            partitions=arguments.partitions,
            memory_safe=arguments.memory_safe,
        ) as mount,
    ):
        live.set_result(mount)
        print(f"mounted {mount.path}", flush=True)
        notify.ready(f"serving {mount.path}")
        telling = asyncio.create_task(_tell_of_slow_requests(mount))
        try:
            await mount.wait()
        finally:
            telling.cancel()


async def _tell_of_slow_requests(mount: Mount) -> None:
    async for event in mount.events():
        if isinstance(event, SlowRequest):
            logger.warning(
                "slow: %s of %d bytes at %d has been running for %.3g s",
                event.command,
                event.length,
                event.offset,
                event.seconds,
            )


@asynccontextmanager
async def _served(arguments: Namespace) -> AsyncIterator[BlockDevice | Factory]:
    if arguments.workers is not None:
        yield partial(device_for_worker, arguments.spec, read_only=arguments.read_only)
        return
    async with device_of(arguments.spec, read_only=arguments.read_only) as device:
        yield device


async def _unmount(mount: Mount, *, force: bool) -> None:
    try:
        await mount.unmount(force=force)
    except DeviceBusyError as exc:
        print(f"aiovblk: {exc}; still serving, again to force", file=sys.stderr, flush=True)
    except Exception:
        pass  # whoever waits for the mount raises it
