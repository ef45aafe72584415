"""Credentials that expire, are renewed, or are rewritten while a disk is in use."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiovblk.storage import ObjectStoreDevice, objects
from aiovblk.storage.objects import ObjectStoreClient
from aiovblk.storage.objects.aws import Profile
from aiovblk.storage.objects.opening import from_url

from ....support.fake_s3 import ErrorResponse, FakeS3, Request
from ....support.stream_server import serving


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FakeS3]:
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "config").write_text("[default]\nregion = us-east-1\n")
    async with serving(FakeS3()) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield store


def write_credentials(folder: Path, key_id: str) -> None:
    """Replace the file, as tools do."""
    new = folder / "new"
    new.write_text(f"[default]\naws_access_key_id = {key_id}\naws_secret_access_key = s\n")
    new.replace(folder / "credentials")


class Keys:
    """The key that a store accepts, and its response to others."""

    def __init__(self, valid: str, code: str = "ExpiredToken", status: int = 403) -> None:
        self.valid = valid
        self.refusal = ErrorResponse(status, code)
        self.refused = 0

    def error_for(self, request: Request) -> ErrorResponse | None:
        if request.key_id == self.valid:
            return None
        self.refused += 1
        return self.refusal


def client(**options: object) -> ObjectStoreClient:
    return from_url("s3://bucket/disk", **options)[0]  # type: ignore[arg-type]


async def test_rewritten_file_is_read_before_anything_is_refused(
    store: FakeS3, tmp_path: Path
) -> None:
    write_credentials(tmp_path, "first")
    keys = Keys("first")
    store.error_for = keys.error_for
    profile = Profile()
    assert profile()["access_key_id"] == "first"
    write_credentials(tmp_path, "second")
    assert profile()["access_key_id"] == "second"


async def test_file_that_is_half_written_leaves_the_old_credentials(
    store: FakeS3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_credentials(tmp_path, "first")
    profile = Profile()
    for contents in ("[default", ""):
        (tmp_path / "credentials").write_text(contents)
        assert profile()["access_key_id"] == "first"
        assert "AWS credentials were not read again" in caplog.messages[-1]
    write_credentials(tmp_path, "second")
    assert profile()["access_key_id"] == "second"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ExpiredToken", 403),
        ("ExpiredToken", 400),
        ("InvalidAccessKeyId", 403),
        ("InvalidToken", 400),
        ("AccessDenied", 403),
        ("", 403),
        ("", 401),
    ],
)
async def test_refused_credentials_are_looked_up_again_once(
    store: FakeS3, tmp_path: Path, code: str, status: int
) -> None:
    """The file has the same time and size as before: only the refusal shows that it changed."""
    write_credentials(tmp_path, "first0")
    keys = Keys("first0", code, status)
    store.error_for = keys.error_for
    disk = client()
    await disk.put("a", b"one")
    keys.valid = "second"
    before = (tmp_path / "credentials").stat()
    text = (tmp_path / "credentials").read_text().replace("first0", "second")
    (tmp_path / "credentials").write_text(text)
    os.utime(tmp_path / "credentials", ns=(before.st_atime_ns, before.st_mtime_ns))
    await disk.put("b", b"two")
    assert keys.refused == 1
    assert store.objects == {"/bucket/a": b"one", "/bucket/b": b"two"}


async def test_many_requests_that_are_refused_together_renew_once(
    store: FakeS3, tmp_path: Path
) -> None:
    helper = _helper(tmp_path, seconds=3600)
    (tmp_path / "config").write_text(
        f"[default]\ncredential_process = {helper}\nregion = us-east-1\n"
    )
    keys = Keys("token1")
    store.error_for = keys.error_for
    disk = client()
    await disk.put("a", b"")
    keys.valid = "token2"  # the first is revoked before it expires
    await asyncio.gather(*(disk.subfolder("x").put(f"{each}", b"") for each in range(8)))
    assert _asked(tmp_path) == 2
    assert len(store.objects) == 9


def _helper(folder: Path, *, seconds: int) -> Path:
    """Write a command that prints another token each time, valid for ``seconds``."""
    helper = folder / "helper"
    helper.write_text(
        f"#!/bin/sh\necho x >>{folder}/asked\nn=$(grep -c x {folder}/asked)\n"
        'printf \'{"Version":1,"AccessKeyId":"token%s","SecretAccessKey":"s",'
        '"SessionToken":"t","Expiration":"%s"}\' '
        f"$n $(date -u -d '+{seconds} seconds' +%Y-%m-%dT%H:%M:%SZ)\n"
    )
    helper.chmod(stat.S_IRWXU)
    return helper


def _asked(folder: Path) -> int:
    return (folder / "asked").read_text().count("x")


async def test_tokens_are_renewed_by_their_own_expiry(store: FakeS3, tmp_path: Path) -> None:
    """botocore renews tokens that expire within ten minutes: here, at each request."""
    helper = _helper(tmp_path, seconds=300)
    (tmp_path / "config").write_text(
        f"[default]\ncredential_process = {helper}\nregion = us-east-1\n"
    )
    profile = Profile()
    first = profile()["access_key_id"]
    assert profile()["access_key_id"] != first


async def test_missing_permission_is_reported_at_once(store: FakeS3, tmp_path: Path) -> None:
    write_credentials(tmp_path, "first")
    store.error_for = Keys("none", "AccessDenied").error_for
    with pytest.raises(PermissionError, match="AccessDenied"):
        await client().get("a")
    assert len(store.requests) == 2  # with the same credentials, looked up again
    assert {request.key_id for request in store.requests} == {"first"}


async def test_live_disk_waits_for_renewed_credentials(store: FakeS3, tmp_path: Path) -> None:
    """Nothing that was written is lost: the flush goes on once the file is rewritten."""
    write_credentials(tmp_path, "first")
    keys = Keys("first")
    store.error_for = keys.error_for
    disk = client()
    await objects.create(disk, "disk", size=1 << 20, chunk_size=1 << 16)
    device = await ObjectStoreDevice.open(disk, "disk")
    await device.write(0, memoryview(b"a" * 4096))
    keys.valid = "second"
    flush = asyncio.create_task(device.flush())
    refused = asyncio.Event()
    store.error_for = lambda request: refused.set() or keys.error_for(request)  # type: ignore[func-returns-value]
    await refused.wait()
    write_credentials(tmp_path, "second")
    await flush
    await device.unmount()
    again = await ObjectStoreDevice.open(disk, "disk", read_only=True)
    assert await again.read(0, 4096) == b"a" * 4096
    await again.unmount()


async def test_fixed_credentials_are_refused_at_once(store: FakeS3) -> None:
    keys = Keys("first")
    store.error_for = keys.error_for
    disk = client(access_key_id="first", secret_access_key="s", region="us-east-1")
    await disk.put("a", b"")
    keys.valid = "second"
    with pytest.raises(PermissionError, match="ExpiredToken"):
        await disk.put("a", b"")
    assert keys.refused == 1


async def test_helper_that_fails_is_reported_with_its_words(store: FakeS3, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "[default]\ncredential_process = /bin/sh -c 'echo log in first >&2; exit 1'\n"
    )
    with pytest.raises(ValueError, match=r"s3://bucket: .*log in first"):
        client()


async def test_region_of_a_profile_is_used(store: FakeS3, tmp_path: Path) -> None:
    write_credentials(tmp_path, "first")
    (tmp_path / "config").write_text("[default]\nregion = eu-central-1\n")
    await client().put("a", b"")
    assert "/eu-central-1/s3/" in store.requests[0].headers["authorization"]


async def test_bundle_of_a_profile_is_read(store: FakeS3, tmp_path: Path) -> None:
    write_credentials(tmp_path, "first")
    (tmp_path / "config").write_text(f"[default]\nca_bundle = {tmp_path}/missing.pem\n")
    with pytest.raises(ValueError, match=r"missing\.pem"):
        client()
