"""Options that ublk does not have are refused, each with its reason."""

from __future__ import annotations

from typing import Any

import pytest

import aiovblk

from ....support.fake_ublk import FakeUblk
from ....support.noting_disk import Disk


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"workers": 2}, "the kernel lets one process serve a ublk device: leave workers out"),
        ({"workers": 1}, "the kernel lets one process serve a ublk device: leave workers out"),
        ({"connections": 2}, "a ublk device has one queue, .*: leave connections out"),
        ({"timeout": 60}, "ublk has no timeout for a connection: use handler_timeout"),
    ],
)
async def test_option_that_cannot_be_is_refused_before_anything_is_done(
    ublk_kernel: FakeUblk, ublk_disk: Disk, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        await aiovblk.mount(ublk_disk, attach="ublk", **options)
    assert ublk_kernel.log == []


async def test_detach_is_refused(ublk_kernel: FakeUblk, ublk_disk: Disk) -> None:
    async with aiovblk.mounted(ublk_disk, attach="ublk", connections=1) as mount:
        with pytest.raises(aiovblk.Error, match="survive"):
            await mount.detach()
        assert ublk_kernel.device.is_live
    assert ublk_kernel.leaks() == []
