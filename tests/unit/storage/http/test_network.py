"""A web server on a bad network, redirects, certificates, and secrets in URLs."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator

import pytest
import trustme

from aiovblk.aio.backoff import _Attempts
from aiovblk.errors import StorageError
from aiovblk.storage import HTTPDevice
from aiovblk.storage.http import redact_url, resource
from aiovblk.storage.http.url import HTTPURL
from aiovblk.storage.objects.opening import from_url

from ....support.stream_server import serving
from ....support.web_server import CONTENT, Answer, Web, opened

pytestmark = pytest.mark.slow

SECRETS = ("password", "signature")


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving(Web(CONTENT)) as web:
        yield web


def failures() -> dict[str, Answer | None]:
    part = {"Content-Range": f"bytes 0-511/{len(CONTENT)}", "ETag": '"first"'}
    return {
        "500": Answer("500 Internal Server Error", body=b"password, signature"),
        "503": Answer("503 Slow Down"),
        "429": Answer("429 Too Many Requests"),
        "408": Answer("408 Request Timeout", then="close"),
        "cut": Answer(headers={**part, "Content-Length": "512"}, body=bytes(100), then="close"),
        "reset": Answer(headers={**part, "Content-Length": "512"}, body=bytes(100), then="reset"),
        "stall": Answer(headers={**part, "Content-Length": "512"}, body=bytes(100), then="stall"),
        "silence": None,
        "short": Answer(headers=part, body=bytes(256)),
        "long": Answer(headers=part, body=bytes(1024)),
        "elsewhere": Answer(
            headers={**part, "Content-Range": f"bytes 512-1023/{len(CONTENT)}"}, body=bytes(512)
        ),
        "nowhere": Answer(headers={"ETag": '"first"'}, body=bytes(512)),
    }


@pytest.mark.parametrize("failure", failures())
async def test_failure_that_passes_is_not_noticed(web: Web, failure: str) -> None:
    async with opened(web, patience=2) as device:
        web.next = [failures()[failure]]
        assert await device.read(0, 512) == CONTENT[:512]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("500", "the server says 500 Internal Server Error"),
        ("cut", "the response was cut off"),
        ("reset", "the connection was lost|the response was cut off"),
        ("silence", "the server does not answer"),
        ("short", "the response has 256 bytes, not 512"),
        ("long", "the response has more than 512 bytes"),
        ("elsewhere", "the response has 512 bytes at 512, not 512 at 0"),
        ("nowhere", "the response does not say which part it has"),
    ],
)
async def test_failure_that_stays_is_an_error_without_secrets_after_the_retry_timeout(
    web: Web,
    failure: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    url = web.url("/disk.img?signature=1", user="user:password@")
    if failure == "silence":
        monkeypatch.setattr(resource, "_MAX_READ_TIMEOUT", 0.1)
        monkeypatch.setattr(resource, "_MIN_RATE", 1)  # it is not the whole response that is late
    device = await HTTPDevice.open(url)
    web.next = [failures()[failure]] * 100
    asked = len(web.requests)
    # The third attempt is the last, however long each takes.
    monkeypatch.setattr(_Attempts, "is_last", lambda *_: len(web.requests) >= asked + 3)
    with pytest.raises(StorageError, match=reason) as caught:
        await device.read(0, 512)
    await device.unmount()
    assert caught.value.errno == errno.EIO
    assert len(web.requests) == asked + 3
    assert str(caught.value).startswith(f"http://127.0.0.1:{web.port}/disk.img: ")
    texts = [str(caught.value), *(each.getMessage() for each in caplog.records)]
    assert not [text for text in texts for secret in SECRETS if secret in text]


async def test_server_that_is_not_there_is_named(web: Web) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # so that nobody else listens there
        web.port = sock.getsockname()[1]
        with pytest.raises(StorageError, match=f"no connection to 127.0.0.1:{web.port}: .*refused"):
            await HTTPDevice.open(web.url(), patience=0.2)


async def test_lines_that_are_no_http_are_an_error(web: Web) -> None:
    web.next = [Answer("nonsense")]
    with pytest.raises(StorageError, match="does not speak HTTP"):
        await HTTPDevice.open(web.url("/disk.img?signature=1"))


async def test_cancelled_read_leaves_the_device_usable(web: Web) -> None:
    async with opened(web, requests=1) as device:
        web.next = [None]
        reading = asyncio.create_task(device.read(0, 512))
        await web.silent.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await device.read(0, 512) == CONTENT[:512]


# Redirects


def redirect(url: str) -> Answer:
    return Answer("302 Found", {"Location": url})


async def test_redirect_is_followed_and_validated_and_learns_no_password(web: Web) -> None:
    async with serving(Web(b"")) as first:
        target = web.url("/real.img?x=%2F%61")
        first.next = [redirect(target)] * 3
        url = first.url("/disk.img?signature=1", user="user:password@")
        device = await HTTPDevice.open(url)
        assert await device.read(512, 512) == CONTENT[512:1024]
        web.etag = '"second"'
        with pytest.raises(StorageError, match="it has changed"):
            await device.read(512, 512)
        await device.unmount()
    assert "authorization" in first.requests[0].headers
    assert web.requests[1].headers["if-match"] == '"first"'
    for request in web.requests:
        assert request.target == "/real.img?x=%2F%61"
        assert "authorization" not in request.headers
        assert "signature" not in str(request.headers)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/disk.img?signature=2", "redirects in circles"),
        ("ftp://127.0.0.1/signature", "redirects to an invalid URL"),
        ("http://[/signature", "redirects to an invalid URL"),
    ],
)
async def test_redirect_that_leads_nowhere_is_an_error(web: Web, target: str, reason: str) -> None:
    web.next = [redirect(target)] * 20
    with pytest.raises(StorageError, match=reason) as caught:
        await HTTPDevice.open(web.url())
    assert "signature" not in str(caught.value)


# TLS


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_certificate_is_verified(tls: ssl.SSLContext) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with serving(Web(CONTENT), tls) as web:
        with pytest.raises(StorageError, match="certificate is refused"):
            await HTTPDevice.open(web.url())


async def test_https_is_read_and_redirects_to_no_http(
    web: Web, tls: ssl.SSLContext, authority: trustme.CA
) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with serving(Web(CONTENT), tls) as secure, opened(secure, tls=trusting) as device:
        assert await device.read(0, 512) == CONTENT[:512]
        secure.next = [redirect(web.url())]
        with pytest.raises(StorageError, match="redirects from https to http"):
            await device.read(0, 512)


# Addresses


@pytest.mark.parametrize(
    ("url", "asked", "name"),
    [
        ("http://h/a%20b%2Fc?x=%2f+#d", "http://h/a%20b%2Fc?x=%2f+", "http://h/a%20b%2Fc"),
        ("https://u:p@h:81/a b?c d", "https://h:81/a%20b?c%20d", "https://h:81/a%20b"),
        ("HTTP://[::1]:81", "http://[::1]:81/", "http://[::1]:81/"),
        ("http://h/ä", "http://h/%C3%A4", "http://h/%C3%A4"),
        ("http://a@b@h/u:p@x", "http://h/u:p@x", "http://h/u:p@x"),
    ],
)
def test_url_is_asked_for_as_it_is_and_shown_without_secrets(
    url: str, asked: str, name: str
) -> None:
    address = HTTPURL.parse(url)
    assert (address.url, address.name) == (asked, name)


def test_user_and_password_are_basic_authorization() -> None:
    assert HTTPURL.parse("http://h/a").authorization is None
    header = HTTPURL.parse("http://us%40er:pass%3Aw%2Ford@h/a").authorization
    assert header == "Basic dXNAZXI6cGFzczp3L29yZA=="  # us@er:pass:w/ord


async def test_authorization_of_the_caller_comes_first(web: Web) -> None:
    url = web.url(user="user:password@")
    device = await HTTPDevice.open(url, authorization="Bearer token")
    await device.unmount()
    assert web.requests[0].headers["authorization"] == "Bearer token"


@pytest.mark.parametrize(
    "url",
    ["", "http:", "http://", "http:password", "http:///password", "https://user:pass/word@h/a",
     "http://h:password/", "http://[password/", "http://h:0/password", "ftp://password@h/a"],
)  # fmt: skip
async def test_what_is_no_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="write https://HOST/FILE") as caught:
        await HTTPDevice.open(url)
    assert "pass" not in str(caught.value).replace("in a password", "")
    assert caught.value.__suppress_context__


def test_url_that_is_no_object_store_is_shown_without_secrets() -> None:
    with pytest.raises(ValueError, match="'https://h/a' is no object store"):
        from_url("https://user:password@h/a?signature=1")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/disk?size=1G", "s3://bucket/disk?size=1G"),
        ("http://u:p@h/a?b#c", "http://h/a"),
        ("http://u:p@[h/a?b", "http:..."),
    ],
)
def test_only_urls_of_the_web_are_shortened(text: str, shown: str) -> None:
    assert redact_url(text) == shown
