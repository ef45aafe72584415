"""The service of a worker that serves one connection of a mount."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any

import pytest

import aiovblk
from aiovblk import BlockDevice
from aiovblk.cli.spec import device_for_worker
from aiovblk.device import DeviceFactory
from aiovblk.dispatch import HandlerLimits
from aiovblk.mounting.workers.service import ConnectionService, DeviceInfo
from aiovblk.storage import MemoryDevice

from ...support.network_client import LoggingDevice


def service(factory: DeviceFactory, *, several: bool = True) -> ConnectionService:
    limits = HandlerLimits(concurrency=128, handler_timeout=None, slow_request=None)
    return ConnectionService(factory, limits, several, False, lambda name, *arguments: None)


class Coarse(BlockDevice):
    block_size = 65536
    blocks = 1


async def test_device_that_does_not_share_its_data_has_one_worker_only() -> None:
    factory = partial(MemoryDevice, 8192)
    with pytest.raises(ValueError, match="MemoryDevice cannot be served by several workers"):
        await service(factory).open()
    geometry = await service(factory, several=False).open()
    assert geometry[:3] == ("MemoryDevice", 4096, 2)
    assert isinstance(geometry, DeviceInfo)


async def test_the_command_may_have_one_worker_for_any_device() -> None:
    factory = partial(device_for_worker, "memory:8K")
    with pytest.raises(ValueError, match="MemoryDevice cannot be served by several workers"):
        await service(factory).open()
    assert (await service(factory, several=False).open()).blocks == 2


class Spinning(BlockDevice):
    blocks = 2
    rotational = True
    read_only = False


async def test_open_returns_what_the_kernel_is_given() -> None:
    geometry = await service(Spinning, several=False).open()
    assert (geometry.read_only, geometry.rotational) == (False, True)


async def test_a_connection_that_cannot_be_taken_over_leaves_nothing_to_abort() -> None:
    serving = service(partial(MemoryDevice, 8192), several=False)
    await serving.open()
    with socket.socket(socket.AF_INET) as wrong:
        with pytest.raises(ValueError, match="UNIX"):
            await serving.connect(wrong)
        await serving.abort()
        await serving.shutdown()


class Burning(LoggingDevice):
    async def flush(self) -> None:
        await super().flush()
        raise asyncio.CancelledError


async def test_shutdown_unmounts_a_device_whose_flush_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = Burning()
    serving = service(lambda: device, several=False)
    await serving.open()
    await serving.shutdown()
    assert device.events == ["flush", "unmount"]
    assert "Burning.flush() failed" in caplog.text


@pytest.mark.parametrize(("factory", "error"), [(dict, TypeError), (Coarse, ValueError)])
async def test_device_that_cannot_be_mounted_is_refused(
    factory: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await service(factory, several=False).open()


@pytest.mark.parametrize(
    ("device", "options", "reason"),
    [
        (MemoryDevice(4096), {"workers": 2}, "give what makes one"),
        (MemoryDevice, {"workers": 2, "connections": 2}, "leave connections out"),
        (MemoryDevice, {"workers": 0}, "workers must be from 1 to 1024"),
        (MemoryDevice(4096), {"connections": 0}, "connections must be from 1 to 1024"),
        (MemoryDevice(4096), {"timeout": 0}, "timeout must be a positive number"),
        (MemoryDevice(4096), {"timeout": 1 << 40}, "timeout must be a positive number"),
        (MemoryDevice, {}, "make an instance of it"),
    ],
)
async def test_options_that_cannot_be_are_refused(
    device: Any, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=reason):
        await aiovblk.mount(device, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"max_sectors_kb": 2},
        {"max_sectors_kb": 65536},
        {"max_sectors_kb": 130},
        {"read_ahead_kb": -4},
        {"read_ahead_kb": 3},
    ],
)
def test_a_queue_that_the_kernel_would_refuse_or_round_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="_kb must be"):
        aiovblk.RequestQueue(**options)
