"""A server that redirects to mirrors: which one is read, and when another one is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from aiovblk.errors import StorageError
from aiovblk.storage import HTTPDevice
from aiovblk.storage.http import resource as resource

from ....support.stream_server import serving
from ....support.web_server import CONTENT, DATE, Answer, Request, Web


class Redirector(Web):
    """Redirects each request to the next mirror."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.targets: list[str] = []

    def part(self, request: Request) -> Answer:
        target = self.targets[(len(self.requests) - 1) % len(self.targets)]
        return Answer("302 Found", {"Location": target})


class Mirrors:
    """Three mirrors, and the server that redirects to them."""

    def __init__(self, redirector: Redirector, webs: list[Web]) -> None:
        self.redirector = redirector
        self.webs = webs
        redirector.targets = [web.url() for web in webs]

    async def open(self, path: str = "/disk.img", *, user: str = "") -> HTTPDevice:
        return await HTTPDevice.open(self.redirector.url(path, user), patience=2)

    @property
    def asked(self) -> list[int]:
        return [len(web.requests) for web in self.webs]


@pytest.fixture
async def mirrors() -> AsyncIterator[Mirrors]:
    async with AsyncExitStack() as stack:
        redirector = Redirector()
        webs = [Web(CONTENT) for _ in range(3)]
        for web in (redirector, *webs):
            await stack.enter_async_context(serving(web))
        yield Mirrors(redirector, webs)


async def read_some(device: HTTPDevice, count: int = 4) -> None:
    for each in range(count):
        assert await device.read(each * 512, 512) == CONTENT[each * 512 :][:512]


async def test_reads_stay_with_the_mirror_that_answered(mirrors: Mirrors) -> None:
    device = await mirrors.open()
    await read_some(device)
    await device.unmount()
    assert mirrors.asked == [5, 0, 0]
    assert len(mirrors.redirector.requests) == 1


async def test_tags_that_each_mirror_makes_for_itself_do_not_matter(mirrors: Mirrors) -> None:
    for number, web in enumerate(mirrors.webs):
        web.etag = f'"{number}"'
    device = await mirrors.open()
    await read_some(device)
    assert mirrors.webs[0].requests[-1].headers["if-match"] == '"0"'
    mirrors.webs[0].next = [Answer("404 Not Found")]
    await read_some(device)
    assert mirrors.webs[1].requests[-1].headers["if-match"] == '"1"'
    await device.unmount()
    assert mirrors.asked == [6, 4, 0]


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "503 Busy", "410 Gone"])
async def test_mirror_that_fails_is_left_for_another_one(mirrors: Mirrors, status: str) -> None:
    device = await mirrors.open()
    mirrors.webs[0].next = [Answer(status)] * 100
    await read_some(device)
    await device.unmount()
    assert mirrors.asked == [2, 4, 0]
    assert len(mirrors.redirector.requests) == 2


async def test_mirror_that_has_not_got_the_file_is_passed_over(mirrors: Mirrors) -> None:
    for web in mirrors.webs[:2]:
        web.next = [Answer("404 Not Found")] * 100
    device = await mirrors.open()
    await read_some(device)
    await device.unmount()
    assert mirrors.asked == [1, 1, 5]


async def test_file_that_no_mirror_has_is_reported_at_once(mirrors: Mirrors) -> None:
    for web in mirrors.webs:
        web.next = [Answer("404 Not Found")] * 100
    with pytest.raises(StorageError, match="404 Not Found"):
        await mirrors.open()
    assert mirrors.asked == [2, 1, 1]


async def test_mirror_with_another_version_is_not_read(mirrors: Mirrors) -> None:
    device = await mirrors.open()
    mirrors.webs[0].next = [Answer("404 Not Found")]
    mirrors.webs[1].content = bytes(len(CONTENT))
    mirrors.webs[1].etag, mirrors.webs[1].modified = '"other"', "Wed, 21 Oct 2015 07:28:01 GMT"
    await read_some(device)
    await device.unmount()
    assert mirrors.asked == [2, 1, 4]


async def test_mirrors_that_share_no_date_and_no_tag_are_not_mixed(mirrors: Mirrors) -> None:
    for number, web in enumerate(mirrors.webs):
        web.etag, web.modified = f'"{number}"', ""
    device = await mirrors.open()
    mirrors.webs[0].next = [Answer("503 Busy")]
    await read_some(device)  # of the first one again, once it can
    mirrors.webs[0].next = [Answer("404 Not Found")] * 100
    with pytest.raises(StorageError, match="404 Not Found"):
        await device.read(0, 512)
    await device.unmount()


async def test_file_that_changes_on_every_mirror_is_an_error(mirrors: Mirrors) -> None:
    device = await mirrors.open()
    for web in mirrors.webs:
        web.etag, web.modified = '"second"', "Wed, 21 Oct 2015 07:28:01 GMT"
    with pytest.raises(StorageError, match="it has changed on the server"):
        await device.read(0, 512)
    await device.unmount()


async def test_signature_of_a_mirror_that_expires_is_renewed(mirrors: Mirrors) -> None:
    web = mirrors.webs[0]
    mirrors.redirector.targets = [web.url("/a?signature=1"), web.url("/a?signature=2")]
    device = await mirrors.open()
    web.next = [Answer("403 Forbidden")]
    await read_some(device, 2)
    await device.unmount()
    assert [request.target for request in web.requests] == [
        "/a?signature=1",
        "/a?signature=1",
        "/a?signature=2",
        "/a?signature=2",
    ]


async def test_password_is_for_the_redirector_alone(mirrors: Mirrors) -> None:
    device = await mirrors.open(user="user:password@")
    mirrors.webs[0].next = [Answer("503 Busy")]
    await read_some(device)
    await device.unmount()
    assert all("authorization" in each.headers for each in mirrors.redirector.requests)
    assert not any("authorization" in each.headers for web in mirrors.webs for each in web.requests)


async def test_password_is_sent_to_another_file_of_the_same_server() -> None:
    async with serving(Web(CONTENT)) as web:
        web.next = [Answer("302 Found", {"Location": "/real.img"})]
        device = await HTTPDevice.open(web.url("/disk.img", "user:password@"))
        await read_some(device)
        await device.unmount()
    assert [each.target for each in web.requests[1:]] == ["/real.img"] * 5
    assert all("authorization" in each.headers for each in web.requests)


async def test_conditions_are_not_those_of_another_mirror(mirrors: Mirrors) -> None:
    """The second would refuse (412) the first one's ETag, though the file is the same."""
    for number, web in enumerate(mirrors.webs):
        web.etag = f'"{number}"'
    device = await mirrors.open()
    mirrors.webs[0].next = [Answer("503 Busy")]
    await read_some(device, 1)
    await device.unmount()
    assert "if-match" not in mirrors.redirector.requests[-1].headers
    assert mirrors.webs[0].modified == DATE


# A response that does not end


class Dripping(Web):
    """Sends a byte at a time, and never ends."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in self.drops():
            writer.write(byte)
            await writer.drain()
            await asyncio.sleep(0.005)

    def drops(self) -> list[bytes]:
        headers = (
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-511/65536\r\n"
            'ETag: "x"\r\nContent-Length: 1000000\r\n\r\n'
        )
        return [headers.encode(), *([b"x"] * 1_000_000)]


class DrippingHeaders(Dripping):
    def drops(self) -> list[bytes]:
        return [b"HTTP/1.1 206 Partial Content\r\n", *([b"X: y\r\n"] * 1000)] * 1000


@pytest.mark.parametrize("web", [Dripping, DrippingHeaders])
async def test_answer_that_drips_is_given_up(
    web: type[Dripping], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a byte comes: the whole response has a timeout."""
    monkeypatch.setattr(resource, "_MIN_RATE", 1 << 20)
    # Only of the whole: however late a byte comes, it is not that which takes too long.
    make = resource._session
    monkeypatch.setattr(resource, "_session", lambda tls, requests, _: make(tls, requests, 3600))
    async with serving(web(CONTENT)) as dripping:
        with pytest.raises(StorageError, match="the response takes longer than"):
            await HTTPDevice.open(dripping.url(), patience=0.5)
