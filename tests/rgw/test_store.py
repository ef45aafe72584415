"""What a disk relies on: conditional puts succeed once, and a list has every object."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random

import pytest
from obstore.store import S3Store

from aiovblk.storage.objects import ObjectStoreClient
from aiovblk.storage.objects.opening import from_url

from ..support import s3_server
from .ceph import Gateway
from .conftest import at

pytestmark = [pytest.mark.one_loop, pytest.mark.deadline(60)]

ROUNDS = 10


@pytest.mark.parametrize("rivals", [2, 8, 32])
@pytest.mark.parametrize("size", [16, 5 << 20], ids=["small", "in parts"])
async def test_object_is_created_once(client: ObjectStoreClient, rivals: int, size: int) -> None:
    """The gateway stores 4 MiB in the object's head, and what is more elsewhere, before that."""
    for number in range(ROUNDS if size < 1 << 20 else 2):
        await create_at_once([client] * rivals, f"a{number}", size)


async def test_object_is_created_once_through_two_gateways(
    client: ObjectStoreClient, folder: str, another: Gateway
) -> None:
    clients = [client, at(another.port, folder)] * 8
    for number in range(ROUNDS):
        await create_at_once(clients, f"a{number}", 16)


async def create_at_once(clients: list[ObjectStoreClient], path: str, size: int) -> None:
    results = await asyncio.gather(
        *(each.create(path, bytes([number]) * size) for number, each in enumerate(clients)),
        return_exceptions=True,
    )
    assert results.count(None) == 1, results
    assert sum(isinstance(each, FileExistsError) for each in results) == len(clients) - 1
    for each in clients[:2]:
        assert bytes(await each.get(path)) == bytes([results.index(None)]) * size


async def test_object_that_was_deleted_is_created_once_again(client: ObjectStoreClient) -> None:
    for _ in range(ROUNDS):
        await create_at_once([client] * 8, "a", 16)
        await client.delete(["a"])


async def test_object_that_is_replaced_meanwhile_is_not_created(client: ObjectStoreClient) -> None:
    await client.put("a", b"first")
    requests = [client.put("a", b"put"), client.create("a", b"created")] * 8
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert results[::2] == [None] * 8
    assert all(isinstance(each, FileExistsError) for each in results[1::2])
    assert bytes(await client.get("a")) == b"put"


async def test_object_is_put_replaced_and_deleted(client: ObjectStoreClient) -> None:
    await client.put("a/b", b"first")
    await client.put("a/b", bytearray(b"second"))
    assert bytes(await client.get("a/b")) == b"second"
    await client.delete(["a/b", "a/nothing"])
    await client.delete(["a/b"])
    with pytest.raises(FileNotFoundError):
        await client.get("a/b")


async def test_range_of_an_object_is_read(port: int) -> None:
    store: S3Store = s3_server.store(port)
    data = bytes(range(256)) * 20000
    await store.put_async("range", data, use_multipart=False)
    for start, end in ((0, 1), (255, 257), ((4 << 20) - 1, (4 << 20) + 1), (5119999, 5120000)):
        found = await store.get_range_async("range", start=start, end=end)
        assert bytes(found) == data[start:end]


async def test_long_folder_is_listed_in_order_and_deleted_in_few_requests(
    client: ObjectStoreClient,
) -> None:
    """More than one page of a list, and more than one request may delete."""
    names = [f"a/{number:04}" for number in range(1100)]
    for first in range(0, len(names), 50):
        await asyncio.gather(*(client.put(name, b"x") for name in names[first : first + 50]))
    await client.put("ab/1", b"")
    assert [each.path for each in await client.list_objects("a")] == names
    found = await client.list_objects("a", after="a/1097")
    assert [(each.path, each.size) for each in found] == [("a/1098", 1), ("a/1099", 1)]
    await client.delete(names)
    assert await client.list_objects("a") == []
    assert [each.path for each in await client.list_objects("ab")] == ["ab/1"]


async def test_list_has_at_once_what_was_put_through_another_gateway(
    client: ObjectStoreClient, folder: str, another: Gateway
) -> None:
    """A gateway answers before it has finished the index; a list has to look at the object."""
    other = at(another.port, folder)
    for number in range(50):
        await client.create(f"a/{number:02}", b"x")
        assert (await other.list_objects("a"))[-1].path == f"a/{number:02}"
        if number % 2:
            await other.delete([f"a/{number:02}"])
            assert (await client.list_objects("a"))[-1].path == f"a/{number - 1:02}"


async def test_list_has_what_a_killed_gateway_has_put_and_nothing_else(
    client: ObjectStoreClient, folder: str, another: Gateway
) -> None:
    """It leaves changes of the index half done, which a list has to complete."""
    random, were_there = Random(1), 0
    for number in range(5):
        other = at(another.port, folder)
        changed = [f"{number}/{each:02}" for each in range(32)]
        changes = [asyncio.create_task(put_and_delete(other, path)) for path in changed]
        await asyncio.sleep(random.uniform(0.05, 0.4))
        another.kill()
        for change in changes:
            change.cancel()
        await asyncio.gather(*changes, return_exceptions=True)
        await asyncio.to_thread(another.start)
        there = {each async for each in existing(client, changed)}
        for one in (client, at(another.port, folder)):
            assert {found.path for found in await one.list_objects(str(number))} == there
        were_there += len(there)
    assert 0 < were_there < 5 * 32


async def existing(client: ObjectStoreClient, paths: list[str]) -> AsyncIterator[str]:
    for path in paths:
        with suppress(FileNotFoundError):
            await client.get(path)
            yield path


async def put_and_delete(client: ObjectStoreClient, path: str) -> None:
    while True:
        await client.create(path, b"x")
        await client.put(path, b"y")
        await client.delete([path])


async def test_url_and_environment_are_all_it_takes(
    port: int, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client, path = from_url(f"s3://bucket/{folder}")
    await client.subfolder(path).put("a", b"data")
    assert bytes(await at(port, folder).get("a")) == b"data"
