"""``aiovblk mount``: serve a device until a signal, or an unmount from elsewhere."""

from __future__ import annotations

import asyncio
import signal
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from typing import Any

import anyio
import uvloop

from ..errors import DeviceBusyError
from ..mount import Mount, mounted
from .spec import load_device


def run(arguments: Namespace) -> None:
    """Serve ``arguments.spec``; returns once it is unmounted."""
    factory = uvloop.new_event_loop if arguments.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve_until_signal(arguments))


async def _serve_until_signal(arguments: Namespace) -> None:
    with anyio.open_signal_receiver(*_ending_signals()) as signals:
        live: asyncio.Future[Mount] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(_serve(arguments, live))
        unmounting = asyncio.create_task(_unmount_on_signals(signals, serving, live))
        try:
            await asyncio.wait([serving])
        finally:
            unmounting.cancel()
            await asyncio.wait([unmounting])
    serving.result()


def _ending_signals() -> list[signal.Signals]:
    # nohup has a program ignore SIGHUP, and means it.
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


async def _serve(arguments: Namespace, live: asyncio.Future[Mount]) -> None:
    device = await load_device(arguments.spec)
    async with mounted(
        device,
        arguments.path,
        concurrency=arguments.concurrency,
        handler_timeout=arguments.handler_timeout,
        unmount_timeout=arguments.unmount_timeout,
    ) as mount:
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
