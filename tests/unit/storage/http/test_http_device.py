"""A read-only disk that is a file on a web server: ranges, sizes, versions (ETag)."""

from __future__ import annotations

import asyncio
import errno
import logging
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aiovblk.errors import MissingExtraError, StorageError
from aiovblk.storage import HTTPDevice
from aiovblk.testing import check_block_device

from ....support.stream_server import serving
from ....support.web_server import CONTENT, DATE, Answer, Web, opened

MIB = 1 << 20


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving(Web(CONTENT)) as web:
        yield web


# Reading


async def test_file_is_read_in_parts(web: Web) -> None:
    async with opened(web) as device:
        assert (device.size, device.block_size, device.read_only) == (len(CONTENT), 512, True)
        assert await device.read(512, 1024) == CONTENT[512:1536]
        assert await device.read(0, len(CONTENT)) == CONTENT
    assert all(request.headers["accept-encoding"] == "identity" for request in web.requests)
    assert all(request.headers["if-match"] == web.etag for request in web.requests[1:])
    longest = max(request.range[1] - request.range[0] for request in web.requests)
    assert longest == MIB


async def test_connection_is_used_again(web: Web) -> None:
    async with opened(web) as device:
        for each in range(20):
            await device.read(each * 512, 512)
    assert web.connections == 1


async def test_so_many_requests_are_in_flight_and_no_more(web: Web) -> None:
    async with opened(web, requests=4) as device:
        await asyncio.gather(*(device.read(each * 512, 512) for each in range(40)))
    assert web.connections == 4


@pytest.mark.deadline(120)
async def test_device_keeps_the_contract(web: Web) -> None:
    await check_block_device(lambda: HTTPDevice.open(web.url()), rounds=60)


@pytest.mark.parametrize(
    ("size", "wanted", "block_size"),
    [(8192, None, 512), (4096 + 512, None, 512), (3072, None, 512), (8192, 4096, 4096)],
)
async def test_blocks_have_512_bytes_or_what_is_asked_for(
    web: Web, size: int, wanted: int | None, block_size: int
) -> None:
    web.content = CONTENT[:size]
    async with opened(web, block_size=wanted) as device:
        assert (device.block_size, device.size) == (block_size, size)


# What is refused


@pytest.mark.parametrize(
    ("size", "options", "reason"),
    [
        (0, {}, "it is empty"),
        (100, {}, "it has 100 bytes, no multiple of 512, and so is no image of a disk"),
        (8191, {}, "`truncate -s %512` it there"),
        (8704, {"block_size": 4096}, "it has 8704 bytes, no multiple of 4096"),
    ],
)
async def test_file_of_a_size_that_does_not_fit_is_refused(
    web: Web, size: int, options: dict[str, Any], reason: str
) -> None:
    web.content = CONTENT[:size]
    with pytest.raises(StorageError, match=reason):
        await HTTPDevice.open(web.url(), **options)


RANGE = {"Content-Range": f"bytes 0-511/{MIB}", "ETag": '"x"'}


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (Answer("200 OK", body=bytes(8192)), errno.EOPNOTSUPP, r"does not serve parts .*file:PATH"),
        (
            Answer(headers={"Content-Range": "bytes 0-511/*"}, body=bytes(512)),
            errno.EOPNOTSUPP,
            "does not say how long it is",
        ),
        (
            Answer(headers={"Content-Range": "bytes 0-511/1024"}, body=bytes(512)),
            errno.EOPNOTSUPP,
            "neither ETag nor Last-Modified",
        ),
        (
            Answer(headers=RANGE | {"Content-Encoding": "gzip"}, body=bytes(512)),
            errno.EIO,
            r"sends it encoded \(gzip\)",
        ),
        (Answer("404 Not Found"), errno.ENOENT, "the server says 404 Not Found"),
        (Answer("403 Forbidden", body=b"signature"), errno.EACCES, "the server says 403 Forbidden"),
        (Answer("499 Whatever"), errno.EIO, "the server says 499"),
    ],
)
async def test_server_that_cannot_be_used_is_refused_at_once(
    web: Web, answer: Answer, error: int, reason: str
) -> None:
    web.next = [answer]
    with pytest.raises(StorageError, match=reason) as caught:
        await HTTPDevice.open(web.url())
    assert caught.value.errno == error
    assert len(web.requests) == 1


async def test_request_limit_makes_sense(web: Web) -> None:
    with pytest.raises(ValueError, match="requests must be at least 1, not 0"):
        await HTTPDevice.open(web.url(), requests=0)


async def test_package_that_is_missing_is_named(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'aiovblk\[http\]'"):
        await HTTPDevice.open(web.url())


# A file that changes


def replace_content(web: Web) -> None:
    web.content = bytes(len(CONTENT))


def change_tag(web: Web) -> None:
    replace_content(web)
    web.etag = '"second"'


def change_date(web: Web) -> None:
    replace_content(web)
    web.modified = "Wed, 21 Oct 2015 07:28:01 GMT"


def change_both(web: Web) -> None:
    change_tag(web)
    change_date(web)


def shrink(web: Web) -> None:
    web.content = CONTENT[:512]


def grow(web: Web) -> None:
    web.content += bytes(512)


def forget(web: Web) -> None:
    web.etag = web.modified = ""


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize(
    ("etag", "modified", "change"),
    [
        ('"first"', DATE, change_tag),
        ('"first"', "", change_tag),
        ('W/"first"', DATE, change_date),
        ('W/"first"', "", change_tag),
        ("", DATE, change_date),
        ('"first"', DATE, shrink),
        ('"first"', DATE, grow),
        ('"first"', DATE, forget),
    ],
)
async def test_file_that_changes_is_an_error_and_never_data(
    web: Web,
    conditional: bool,
    etag: str,
    modified: str,
    change: Callable[[Web], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    web.etag, web.modified, web.conditional = etag, modified, conditional
    async with opened(web) as device:
        assert await device.read(MIB, 512) == CONTENT[MIB : MIB + 512]
        change(web)
        for _ in range(3):
            with pytest.raises(StorageError, match="it has changed on the server") as caught:
                await device.read(MIB, 512)
            assert caught.value.errno == errno.EIO
    errors = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "/disk.img: it has changed on the server" in errors[0].getMessage()


async def test_file_that_changes_during_a_long_read_is_an_error(web: Web) -> None:
    async with opened(web, requests=1) as device:
        web.change = lambda answer: change_both(web)  # after one part
        with pytest.raises(StorageError, match="it has changed"):
            await device.read(0, len(CONTENT))


async def test_file_that_is_put_back_can_be_read_again(web: Web) -> None:
    async with opened(web) as device:
        web.etag = '"second"'
        with pytest.raises(StorageError, match="it has changed"):
            await device.read(0, 512)
        web.etag = '"first"'
        assert await device.read(0, 512) == CONTENT[:512]


async def test_weak_tag_may_become_strong_and_a_date_is_sent_to_the_server(web: Web) -> None:
    web.etag = 'W/"first"'
    async with opened(web) as device:
        web.etag = '"first"'
        assert await device.read(0, 512) == CONTENT[:512]
    assert "if-match" not in web.requests[-1].headers
    assert web.requests[-1].headers["if-unmodified-since"] == DATE


async def test_date_does_not_matter_where_a_strong_tag_is_the_same(web: Web) -> None:
    async with opened(web) as device:
        web.modified = "Wed, 21 Oct 2015 07:30:00 GMT"  # on another of its mirrors
        assert await device.read(0, 512) == CONTENT[:512]


async def test_identity_is_that_of_the_version_and_not_of_the_signature(web: Web) -> None:
    identities = []
    for path in ("/a?signature=1", "/a?signature=2", "/b"):
        async with opened(web, path) as device:
            identities.append(device.identity)
    change_tag(web)
    async with opened(web, "/a?signature=1") as device:
        identities.append(device.identity)
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3
    assert "signature" not in identities[0]
