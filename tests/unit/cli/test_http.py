"""A file on a web server as a SPEC: alone, with a cache, with an overlay."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from aiovblk.cli.errors import SpecError
from aiovblk.cli.layers import Layers, open_stack
from aiovblk.cli.serve import serve_until_signal
from aiovblk.cli.spec import load_device
from aiovblk.device import BlockDevice
from aiovblk.storage import HTTPDevice, copy

from ...support.stream_server import serving
from ...support.web_server import Web

MIB = 1 << 20
CONTENT = Random(1).randbytes(MIB)
ZEROES = memoryview(bytes(4096))


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving(Web(CONTENT)) as web:
        yield web


def layers(*, overlay: Path | None = None, cache: Path | None = None) -> Layers:
    return Layers.of(
        Namespace(
            overlay=None if overlay is None else str(overlay),
            cache=None if cache is None else 4 << 20,
            cache_path=None if cache is None else str(cache),
            cache_policy=None,
            layer=None,
            workers=None,
        )
    )


async def contents(device: BlockDevice) -> bytes:
    return bytes(await device.read(0, device.size))


@pytest.mark.parametrize("read_only", [False, True])
async def test_url_names_a_read_only_disk(web: Web, read_only: bool) -> None:
    device = await load_device(web.url(), read_only=read_only)
    assert isinstance(device, HTTPDevice)
    assert device.read_only
    assert await contents(device) == CONTENT
    with pytest.raises(ValueError, match="read-only"):
        await copy(device, device)
    await device.unmount()


async def test_cache_is_kept_until_the_server_has_another_version(web: Web, tmp_path: Path) -> None:
    def url(signature: int) -> str:
        return web.url(f"/disk.img?signature={signature}")

    for signature, requests in ((1, 2), (2, 3)):  # the second time, only that of the opening
        async with open_stack(url(signature), layers(cache=tmp_path / "cache")) as device:
            assert await contents(device) == CONTENT
            await device.unmount()
        assert len(web.requests) == requests
    web.content, web.etag = bytes(MIB), '"second"'
    async with open_stack(url(2), layers(cache=tmp_path / "cache")) as device:
        assert await contents(device) == bytes(MIB)
        await device.unmount()


async def test_overlay_is_written_and_refused_over_another_version(
    web: Web, tmp_path: Path
) -> None:
    stack = layers(overlay=tmp_path / "overlay")
    for _ in range(2):
        async with open_stack(web.url(), stack) as device:
            await device.write(4096, ZEROES)
            await device.flush()
            assert await contents(device) == CONTENT[:4096] + ZEROES + CONTENT[8192:]
            await device.unmount()
    web.etag = '"second"'
    with pytest.raises(ValueError, match="the diff was made over"):
        async with open_stack(web.url(user="user:password@"), stack):
            pass


async def test_workers_are_refused_without_telling_secrets(web: Web) -> None:
    spec = web.url("/disk.img?signature=1", user="user:password@")
    arguments = Namespace(
        specs=[spec], workers=2, overlay=None, cache=None, cache_path=None,
        cache_policy=None, block_size=None, read_only=True, socket=None, host=None, port=None,
        stdio=False, description="", tls=None, tls_certificates=None, tls_psk_file=None,
        tls_verify_peer=False, layer=None, user=None, group=None, run=None, pidfile=None,
    )  # fmt: skip
    with pytest.raises(SpecError, match="cannot have workers") as caught:
        await serve_until_signal(arguments)
    assert str(caught.value).startswith(f"{web.url()} cannot")
