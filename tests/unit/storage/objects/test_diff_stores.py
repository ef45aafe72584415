"""States of disks in a local folder and in moto's S3 are compared, by clients of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from obstore.store import LocalStore

from aiovblk.storage.objects import ChangedExtent, ObjectStoreDevice, clone, create, diff, snapshot

from ....support import s3_server

if TYPE_CHECKING:
    from obstore.store import ObjectStore

BLOCK, CHUNK = 4096, 1 << 16


@pytest.mark.one_loop
@pytest.mark.parametrize("kind", ["folder", "s3"])
async def test_states_in_a_store_are_compared(kind: str, tmp_path: Path) -> None:
    if kind == "folder":
        await compare(lambda: LocalStore(tmp_path))
        return
    with s3_server.server() as port:
        await s3_server.make_bucket(port)
        await compare(lambda: s3_server.store(port))


async def compare(make: Callable[[], ObjectStore]) -> None:
    await create(make(), "disk", size=64 * CHUNK, chunk_size=CHUNK)
    device = await ObjectStoreDevice.open(make(), "disk")
    await device.write(0, memoryview(b"a" * 4 * CHUNK))
    await device.flush()
    await snapshot(make(), "disk", name="one")
    await device.write(BLOCK, memoryview(b"b" * BLOCK))
    await device.write(2 * CHUNK, memoryview(b"b" * CHUNK))
    await device.trim(3 * CHUNK, CHUNK)
    await device.flush()
    block = ChangedExtent(BLOCK, BLOCK, zero=False, granularity=BLOCK)
    chunk = ChangedExtent(2 * CHUNK, CHUNK, zero=False, granularity=CHUNK)
    trimmed = ChangedExtent(3 * CHUNK, CHUNK, zero=True, granularity=CHUNK)
    found = await diff(make(), "disk", since="one")
    assert [each async for each in found] == [block, chunk, trimmed]
    await clone(make(), "disk", name="one", target="copy")
    found = await diff(make(), "copy", since_path="disk")
    assert [each async for each in found] == [block, chunk._replace(length=2 * CHUNK)]
    assert [each.dirty for each in await device.dirty_extents("one", 0, 4 * CHUNK)] == [
        False,
        True,
        False,
        True,
    ]
    await device.unmount()
