"""``aiovblk limit``: change the limits of a device that this process serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest

import aiovblk
from aiovblk.cli import limit, main
from aiovblk.cli.control import request_command, taking_commands
from aiovblk.cli.errors import SpecError
from aiovblk.cli.limit import as_text, limit_mounted
from aiovblk.storage import MemoryDevice, Rate, RateLimited, Retry

from ...support.fake_kernel import FakeKernel

MIB = 1 << 20


@pytest.fixture
async def limited(kernel: FakeKernel) -> AsyncIterator[RateLimited]:
    """The limit of a mounted device, below another layer."""
    device = RateLimited(MemoryDevice(MIB), Rate(bytes=1e6))
    async with (
        aiovblk.mounted(Retry(device)) as mount,
        taking_commands(mount.index, {"limit": partial(limit_mounted, mount)}),
    ):
        yield device


async def test_limits_are_replaced_and_shown(limited: RateLimited) -> None:
    found = await request_command(0, "limit", text="read-rate=2M,write-requests=5,burst=3")
    assert (limited.limit, limited.read_limit) == (None, Rate(2 * MIB, None, 3))
    assert limited.write_limit == Rate(None, 5, 3)
    assert found == await request_command(0, "limit", text=None)
    assert as_text(found).splitlines() == [
        "all     none",
        "reads   2M/s, burst 3 s",
        "writes  5 requests/s, burst 3 s",
    ]


async def test_limits_are_lifted(limited: RateLimited) -> None:
    await request_command(0, "limit", text="none")
    assert (limited.limit, limited.read_limit, limited.write_limit) == (None, None, None)


async def test_text_that_is_no_limit_changes_nothing(limited: RateLimited) -> None:
    with pytest.raises(SpecError, match="limit has no option 'speed'"):
        await request_command(0, "limit", text="speed=1")
    assert limited.limit == Rate(bytes=1e6)


async def test_device_without_a_limit_is_refused(kernel: FakeKernel) -> None:
    async with (
        aiovblk.mounted(Retry(MemoryDevice(MIB))) as mount,
        taking_commands(mount.index, {"limit": partial(limit_mounted, mount)}),
    ):
        with pytest.raises(SpecError, match="mount it with --layer limit:rate="):
            await request_command(0, "limit", text="rate=1M")


def test_wrong_limit_is_an_error_of_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["limit", "/dev/nbd0", "rate=fast"])
    assert caught.value.code == 2
    assert "argument LIMIT: option rate of limit 'fast' is no size" in capsys.readouterr().err
    monkeypatch.setattr(limit, "resolve", lambda path: 0)
    assert main(["limit", "/dev/nbd0", "rate=1M", "--json"]) == 2
    assert "leave LIMIT out" in capsys.readouterr().err
