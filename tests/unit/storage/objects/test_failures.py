"""How failures of an object store are classified: retry, error number, message."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from obstore.exceptions import GenericError

from aiovblk.cli.diskspec import DiskSpec
from aiovblk.errors import StorageError
from aiovblk.storage import ObjectStoreDevice, objects
from aiovblk.storage.objects.failures import classify
from aiovblk.storage.objects.opening import from_url

from ....support.fake_s3 import ErrorResponse, FakeS3
from ....support.stream_server import serving


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no config"))


@pytest.fixture
async def store() -> AsyncIterator[FakeS3]:
    async with serving(FakeS3()) as store:
        yield store


PERMANENT = [
    (ErrorResponse(400, "AuthorizationHeaderMalformed"), errno.EIO, "set AWS_REGION to the region"),
    (
        ErrorResponse(400, "AuthorizationHeaderMalformed", more="<Region>eu-west-1</Region>"),
        errno.EIO,
        "the region that the bucket is in, eu-west-1",
    ),
    (
        ErrorResponse(301, "PermanentRedirect"),
        errno.EIO,
        "redirects to another region; set AWS_REGION",
    ),
    (
        ErrorResponse(404, "NoSuchBucket"),
        errno.ENOENT,
        "create the bucket first, or correct its name",
    ),
    (ErrorResponse(403, "ExpiredToken"), errno.EACCES, "the credentials have expired"),
    (ErrorResponse(400, "ExpiredToken"), errno.EACCES, "the credentials have expired"),
    (ErrorResponse(403, "AccessDenied", "not for you"), errno.EACCES, "AccessDenied: not for you"),
    (ErrorResponse(403, "InvalidAccessKeyId"), errno.EACCES, "check AWS_ACCESS_KEY_ID"),
    (ErrorResponse(403, "SignatureDoesNotMatch"), errno.EACCES, "check AWS_SECRET_ACCESS_KEY"),
    (ErrorResponse(403, "RequestTimeTooSkewed"), errno.EACCES, "set this machine's clock"),
    (ErrorResponse(403, "QuotaExceeded"), errno.ENOSPC, "QuotaExceeded"),
    (ErrorResponse(507, "XMinioStorageFull"), errno.ENOSPC, "XMinioStorageFull"),
    (ErrorResponse(501, "NotImplemented"), errno.EIO, "501 Not Implemented: NotImplemented"),
    (ErrorResponse(405), errno.EIO, "405 Method Not Allowed"),
]


@pytest.mark.parametrize(
    ("refusal", "error", "reason"), PERMANENT, ids=lambda each: getattr(each, "code", None)
)
@pytest.mark.parametrize("request_", ["get", "put", "create", "list_objects"])
async def test_permanent_refusal_is_reported_at_once_with_the_stores_message(
    store: FakeS3, refusal: ErrorResponse, error: int, reason: str, request_: str
) -> None:
    store.error_for = lambda request: refusal
    client = store.client()
    arguments = {"get": (), "list_objects": (), "put": (b"x",), "create": (b"x",)}[request_]
    with pytest.raises(OSError, match=f"s3://bucket/a: .*{reason}") as caught:
        await getattr(client, request_)("a", *arguments)
    assert caught.value.errno == error
    assert not isinstance(caught.value, FileNotFoundError)
    assert len(store.requests) == 1
    assert "\n" not in str(caught.value)
    if refusal.code and refusal.status != 301:  # for that, obstore drops the response
        assert refusal.code in str(caught.value)
        assert refusal.message in str(caught.value)


TRANSIENT = [
    ErrorResponse(500, "InternalError"),
    ErrorResponse(503, "SlowDown"),
    ErrorResponse(429, "TooManyRequests"),
    ErrorResponse(408),
    ErrorResponse(400, "RequestTimeout"),
    ErrorResponse(400, "IncompleteBody"),
]


@pytest.mark.parametrize("refusal", TRANSIENT, ids=lambda each: each.code or str(each.status))
@pytest.mark.parametrize("request_", ["get", "put", "list_objects"])
async def test_transient_refusal_is_retried(
    store: FakeS3, refusal: ErrorResponse, request_: str
) -> None:
    store.error_for = lambda request: refusal if len(store.requests) == 1 else None
    store.objects["/bucket/a"] = b"data"
    client = store.client()
    arguments = {"get": (), "list_objects": (), "put": (b"x",)}[request_]
    await getattr(client, request_)("a", *arguments)
    assert len(store.requests) == 2


async def test_conflict_of_a_delete_is_retried(store: FakeS3) -> None:
    refusal = ErrorResponse(409, "OperationAborted")
    store.error_for = lambda request: refusal if len(store.requests) == 1 else None
    await store.client().delete(["a", "b"])
    assert len(store.requests) == 2


async def test_missing_bucket_is_not_a_missing_disk(
    store: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no disk is created, and no message suggests it."""
    store.error_for = lambda request: ErrorResponse(404, "NoSuchBucket", "no such bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(StorageError, match="NoSuchBucket"):
        await ObjectStoreDevice.open("s3://bucket/disk")
    with pytest.raises(StorageError, match="NoSuchBucket"):
        await DiskSpec.parse("s3://bucket/disk?size=1G").open()
    assert {request.method for request in store.requests} == {"GET"}


async def test_what_a_store_says_cannot_write_on_a_terminal(store: FakeS3) -> None:
    store.error_for = lambda request: ErrorResponse(
        403, "AccessDenied", "\x1b[2J&lt;\x1b]0;x\n\u202eforged"
    )
    with pytest.raises(PermissionError) as caught:
        await store.client().get("a")
    assert str(caught.value).isprintable()
    assert r"\x1b[2J<\x1b]0;x\n\u202eforged" in str(caught.value)


async def test_secrets_of_a_request_are_not_shown(store: FakeS3) -> None:
    store.error_for = lambda request: ErrorResponse(
        403, "SignatureDoesNotMatch", more="<StringToSign>AWS4 key secret</StringToSign>"
    )
    with pytest.raises(PermissionError) as caught:
        await store.client().list_objects("a")
    assert "secret" not in str(caught.value)
    assert "prefix=" not in str(caught.value)


# No response


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certificate(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_certificate_that_is_not_trusted_is_reported_at_once(authority: trustme.CA) -> None:
    async with serving(FakeS3(), certificate(authority, "127.0.0.1")) as store:
        with pytest.raises(StorageError, match=r"certificate is refused: .*AWS_CA_BUNDLE"):
            await store.client().get("a")
        assert store.requests == []


async def test_certificate_for_another_host_is_reported_at_once(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    async with serving(FakeS3(), certificate(authority, "other.example")) as store:
        with pytest.raises(StorageError, match="certificate is refused: it is for another host"):
            await store.client().get("a")


async def test_bundle_of_authorities_is_trusted(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    async with serving(FakeS3(), certificate(authority, "127.0.0.1")) as store:
        await store.client().put("a", b"data")
        assert store.objects == {"/bucket/a": b"data"}


@pytest.mark.parametrize("bundle", ["missing.pem", "empty.pem"])
def test_bundle_that_is_none_is_named(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.pem").write_bytes(b"")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / bundle))
    with pytest.raises(ValueError, match=r"s3://bucket: AWS_CA_BUNDLE: .*\.pem"):
        FakeS3(port=1).client()


async def test_store_without_tls_is_reported_at_once() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers.append(asyncio.create_task(answer(reader, writer)))

    answers: list[asyncio.Task[None]] = []
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = FakeS3().client(endpoint=f"https://127.0.0.1:{port}")
        with pytest.raises(StorageError, match="does not speak TLS: its address begins with http:"):
            await client.get("a")
    await asyncio.gather(*answers, return_exceptions=True)


async def test_connection_that_is_refused_is_retried_and_reported_by_its_name(
    store: FakeS3,
) -> None:
    client = store.client(endpoint="http://127.0.0.1:1")
    client._timeout = 0.3
    with pytest.raises(OSError, match="no connection to the store: Connection refused"):
        await client.get("a")


def test_unknown_host_and_silence_are_transient() -> None:
    """In obstore's words; a test cannot control the machine's resolver."""
    head = "Generic S3 error: Error performing GET http://x/?a=b in 1ms - HTTP error: error sending"
    for details, reason in [
        (
            'ConnectError("dns error", Custom { kind: Uncategorized, error: "failed to lookup'
            ' address information: Name or service not known" })',
            "no connection to the store: Name or service not known",
        ),
        ("reqwest::Error { kind: Request, source: TimedOut }", "the store does not answer"),
        ("reqwest::Error { kind: Request }", "HTTP error: error sending"),
    ]:
        failure = GenericError(f"{head}\n\nDebug source:\nHttp(HttpError {{ {details} }})")
        judged = classify(failure, "s3://bucket/a")
        assert judged.transient
        assert reason in str(judged.error)
        assert "a=b" not in str(judged.error)


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:9000",
        "localhost",
        "http://",
        "ftp://host",
        "http://host:x",
        "//host",
        "http://:80",
    ],
)
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", None])
def test_endpoint_that_is_no_address_is_refused(
    endpoint: str, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"access_key_id": "key", "secret_access_key": "secret"}
    if variable is None:
        options["endpoint"] = endpoint
    else:
        monkeypatch.setenv(variable, endpoint)
    with pytest.raises(ValueError, match=r"is no address of a store; write https://HOST") as caught:
        from_url("s3://bucket/a", **options)
    assert (variable or "endpoint") in str(caught.value)


async def test_slash_behind_an_endpoint_does_not_matter(store: FakeS3) -> None:
    client = store.client(endpoint=f"{store.endpoint}/")
    await client.put("a/b", b"data")
    assert [found.path for found in await client.list_objects("a")] == ["a/b"]
    assert bytes(await client.get("a/b")) == b"data"
    assert {request.path for request in store.requests} == {"/bucket/a/b", "/bucket"}


async def test_password_in_an_endpoint_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "user:secret@host:9000")
    with pytest.raises(ValueError, match="'host:9000' is no address") as caught:
        from_url("s3://bucket/a")
    assert "secret" not in str(caught.value)


# No credentials


async def test_missing_credentials_are_reported_with_the_variables(
    store: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no metadata service: the server that answers here is not a cloud's."""
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", store.endpoint)
    store.error_for = lambda request: ErrorResponse(404)
    client = from_url("s3://bucket/a", endpoint=store.endpoint, region="us-east-1")[0]
    with pytest.raises(PermissionError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        await client.get("a")
    assert [request.path for request in store.requests] == ["/latest/api/token"]


def test_account_of_azure_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        from_url("az://container/a")


# A folder


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_a_folder_cannot_do_is_reported_at_once_by_the_systems_number(number: int) -> None:
    failure = GenericError(
        "Generic LocalFileSystem error: Unable to copy data to file\n\nDebug source:\nGeneric {"
        f' source: UnableToCopyDataToFile {{ source: Os {{ code: {number}, kind: X, message: "m" }}'
    )
    judged = classify(failure, "a")
    assert (judged.error.errno, judged.transient) == (number, False)


def test_folder_that_takes_no_more_is_reported_at_once(tmp_path: Path) -> None:
    script = (
        "import asyncio, resource\n"
        "from aiovblk.storage.objects.opening import from_url\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"client = from_url('file://{tmp_path}')[0].subfolder('{str(tmp_path).strip('/')}')\n"
        "try: asyncio.run(client.put('a', bytes(8192)))\n"
        "except OSError as exc: print(exc.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == str(errno.EFBIG)


async def test_disk_is_made_where_nothing_is_wrong(store: FakeS3) -> None:
    client = store.client()
    await objects.create(client, "disk", size=1 << 20, chunk_size=1 << 16)
    device = await ObjectStoreDevice.open(client, "disk")
    await device.write(0, memoryview(b"x" * 4096))
    await device.flush()
    await device.unmount()
