"""Devices on top of a device: a loop device, and one of device mapper."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator

import pytest

from .support import sh


@pytest.fixture(scope="module")
def stacking_modules() -> None:
    """Load what they take, where the kernel does not load it when it is asked for."""
    for module in ("loop", "dm-mod", "ext4"):
        subprocess.run(["modprobe", module], check=False, capture_output=True)


@contextlib.asynccontextmanager
async def loop_on(path: str) -> AsyncIterator[str]:
    loop = (await sh(f"losetup --find --show {path}")).output.strip()
    try:
        yield loop
    finally:
        await sh(f"losetup --detach {loop}")


@contextlib.asynccontextmanager
async def mapped(path: str) -> AsyncIterator[str]:
    sectors = (await sh(f"blockdev --getsz {path}")).output.strip()
    # Without udev nobody makes the node but dmsetup itself.
    dmsetup = "DM_DISABLE_UDEV=1 dmsetup"
    await sh(f"{dmsetup} create above --table '0 {sectors} linear {path} 0' && {dmsetup} mknodes")
    try:
        yield "/dev/mapper/above"
    finally:
        await sh(f"{dmsetup} remove above")
