"""Client and server together: all three reply formats, TLS, a remote device that is served."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from aiovblk import BlockDevice, Extent, connect, serve, tls
from aiovblk.client import dialing
from aiovblk.protocol import ClientHandshake, ReplyMode
from aiovblk.storage import MemoryDevice
from tests.support.certificates import make_certificates

SIZE = 8 << 20
PIECE = 64 << 10


async def exercise(remote: BlockDevice) -> None:
    copy = bytearray(os.urandom(SIZE))
    view = memoryview(copy)
    places = range(0, SIZE, PIECE)
    await asyncio.gather(*(remote.write(at, view[at : at + PIECE]) for at in places))
    await remote.flush()
    view[PIECE : 9 * PIECE] = bytes(8 * PIECE)
    await remote.write_zeroes(PIECE, 8 * PIECE, may_trim=True)
    assert await remote.read(0, SIZE) == copy
    pieces = await asyncio.gather(*(remote.read(at, PIECE) for at in places))
    assert b"".join(pieces) == copy
    await remote.trim(0, PIECE)
    await remote.cache(0, SIZE)


@pytest.mark.parametrize("mode", list(ReplyMode))
async def test_all_forms_of_replies(
    mode: ReplyMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handshake(name: str, **options: Any) -> ClientHandshake:
        return ClientHandshake(name, mode=mode, **options)

    monkeypatch.setattr(dialing, "ClientHandshake", handshake)
    path = tmp_path / "s"
    async with (
        serve(MemoryDevice(SIZE), unix=path),
        connect(f"nbd+unix:///?socket={path}") as remote,
    ):
        assert remote._session.negotiated.mode is mode
        await exercise(remote)


async def test_holes_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with (
        serve(MemoryDevice(SIZE), unix=path),
        connect(f"nbd+unix:///?socket={path}") as remote,
    ):
        assert await remote.extents(0, SIZE) == [Extent(SIZE, hole=True, zero=True)]


async def test_tls(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    path = tmp_path / "s"
    context = tls.server_context(certificates, verify_peer=True)
    uri = f"nbds+unix:///?socket={path}&tls-certificates={certificates}"
    async with serve(MemoryDevice(SIZE), unix=path, tls=context), connect(uri) as remote:
        await exercise(remote)


async def test_remote_device_is_served_as_any_other(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    async with (
        serve(MemoryDevice(SIZE), unix=far),
        connect(f"nbd+unix:///?socket={far}") as middle,
        serve(middle, unix=near),
        connect(f"nbd+unix:///?socket={near}") as remote,
    ):
        await exercise(remote)
