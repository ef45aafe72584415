"""``aiovblk mount``: serve a device until a signal, or an unmount from elsewhere."""

from __future__ import annotations

import asyncio
import signal
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from typing import Any

import anyio

from ..errors import DeviceBusyError
from ..mount import Mount, mounted
from .running import ending_signals
from .spec import device_of


async def mount_until_signal(arguments: Namespace) -> None:
    """Serve ``arguments.spec`` to the kernel; returns once it is unmounted."""
    with anyio.open_signal_receiver(*ending_signals()) as signals:
        live: asyncio.Future[Mount] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(_serve(arguments, live))
        unmounting = asyncio.create_task(_unmount_on_signals(signals, serving, live))
        try:
            await asyncio.wait([serving])
        finally:
            unmounting.cancel()
            await asyncio.wait([unmounting])
    serving.result()


async def _serve(arguments: Namespace, live: asyncio.Future[Mount]) -> None:
    async with (
        device_of(arguments.spec, read_only=arguments.read_only) as device,
        mounted(
            device,
            arguments.path,
            concurrency=arguments.concurrency,
            handler_timeout=arguments.handler_timeout,
            unmount_timeout=arguments.unmount_timeout,
        ) as mount,
    ):
        live.set_result(mount)
        print(f"mounted {mount.path}", flush=True)
        await mount.wait()


async def _unmount_on_signals(
    signals: AsyncIterator[signal.Signals],
    serving: asyncio.Task[Any],
    live: asyncio.Future[Mount],
) -> None:
    """Unmount at the first signal, by force at the next."""
    unmounts: set[asyncio.Task[None]] = set()
    async for _ in signals:
        if not live.done():
            serving.cancel()
            continue
        # Not awaited here, so that the next signal is heard.
        unmounts.add(asyncio.create_task(_unmount(live.result(), force=bool(unmounts))))


async def _unmount(mount: Mount, *, force: bool) -> None:
    try:
        await mount.unmount(force=force)
    except DeviceBusyError as exc:
        print(f"aiovblk: {exc}; still serving, again to force", file=sys.stderr, flush=True)
    except Exception:
        pass  # whoever waits for the mount raises it
