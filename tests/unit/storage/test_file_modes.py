"""Files with contents of disks are private to their owner, whatever the umask."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aiovblk import tls
from aiovblk.cli.diskspec import KEY_FILE, read_key
from aiovblk.cli.errors import SpecError
from aiovblk.cli.layers import Layers, open_stack
from aiovblk.keyfiles import warn_if_shared
from aiovblk.storage import FileDevice, MemoryDevice, Overlay
from aiovblk.storage.objects import Limits, ObjectStoreDevice, create, snapshot
from tests.support.certificates import USER, make_certificates, make_keys

KEY = bytes(range(32))


@pytest.fixture(autouse=True, params=[0o022, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


async def test_file_of_an_overlay(tmp_path: Path) -> None:
    await (await Overlay.file(MemoryDevice(1 << 20), tmp_path / "diff")).unmount()
    assert modes(tmp_path) == {0o600}


async def test_existing_file_of_an_overlay_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "diff").touch(0o640)
    (tmp_path / "diff").chmod(0o640)
    await (await Overlay.file(MemoryDevice(1 << 20), tmp_path / "diff")).unmount()
    assert modes(tmp_path) == {0o640}


async def test_file_of_a_disk(tmp_path: Path) -> None:
    await FileDevice.create(tmp_path / "disk", 4096).unmount()
    assert modes(tmp_path) == {0o600}


async def test_files_of_the_command(tmp_path: Path) -> None:
    layers = Layers.parse(f"cache:size=4M,path={tmp_path}/cache", f"overlay:path={tmp_path}/diff")
    async with open_stack("memory:1M", layers) as device:
        await device.write(0, memoryview(b"a" * 4096))
        await device.flush()
        await device.unmount()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "diff"]
    assert modes(tmp_path) == {0o600}


async def test_objects_of_a_folder(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/disk"
    await create(url, size=1 << 20, key=KEY)
    device = await ObjectStoreDevice.open(url, key=KEY, limits=Limits(inline_size=0))
    await device.write(0, memoryview(b"a" * 4096))
    await device.write(0, memoryview(b"a" * (1 << 20)))
    await device.flush()
    await device.write(0, memoryview(b"a" * 4096))
    await device.flush()
    await snapshot(url, name="one", key=KEY)
    folders = {path.name for path in (tmp_path / "disk").iterdir()}
    assert folders == {"disk.json", "log", "map", "chunks", "segments", "lease"}
    assert modes(tmp_path) == {0o600}
    await device.unmount()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_key_that_others_can_read_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    path = tmp_path / "a key"
    path.write_bytes(KEY)
    path.chmod(mode)
    monkeypatch.setenv(KEY_FILE, str(path))
    assert read_key() == KEY
    assert [record.message for record in caplog.records] == [
        f"others can read the key in {path}: chmod 600 '{path}'"
    ]


def test_key_that_only_its_owner_can_read_is_not_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "key"
    path.write_text(KEY.hex())
    path.chmod(0o400)
    monkeypatch.setenv(KEY_FILE, str(path))
    assert read_key() == KEY
    assert caplog.records == []


def test_key_may_come_by_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of ``AIOVBLK_KEY_FILE=<(gpg -d key.gpg)`` in a shell."""
    reading, writing = os.pipe()
    monkeypatch.setenv(KEY_FILE, f"/dev/fd/{reading}")
    with ThreadPoolExecutor() as threads:
        found = threads.submit(read_key)
        os.write(writing, KEY.hex().encode())
        os.close(writing)
        assert found.result() == KEY
    os.close(reading)


def test_pipe_that_nobody_writes_to_is_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "pipe"))
    with pytest.raises(SpecError, match="pipe contains no key"):
        read_key()


def test_device_without_an_end_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_FILE, "/dev/zero")
    with pytest.raises(OSError, match="too large for a key file, more than 4096 bytes: '/dev/zero"):
        read_key()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="pre-shared keys came with Python 3.13")
def test_pre_shared_keys_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="there is no key"):
        tls.psk_server_context(tmp_path / "pipe")
    with pytest.raises(OSError, match="too large for a key file"):
        tls.psk_server_context("/dev/zero")


@pytest.mark.parametrize("name", ["server-key.pem", "client-key.pem"])
def test_key_of_a_certificate_is_checked_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    make_certificates(tmp_path)
    tls.server_context(tmp_path)
    tls.client_context(tmp_path)
    assert caplog.records == []
    (tmp_path / name).chmod(0o644)
    tls.server_context(tmp_path)
    tls.client_context(tmp_path)
    key = tmp_path / name
    assert caplog.messages == [f"others can read the key in {key}: chmod 600 {key}"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="pre-shared keys came with Python 3.13")
def test_file_of_pre_shared_keys_is_checked_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = make_keys(tmp_path / "keys")
    tls.psk_server_context(keys)
    assert caplog.records == []
    keys.chmod(0o644)
    tls.psk_client_context(keys, USER)
    assert caplog.messages == [f"others can read the key in {keys}: chmod 600 {keys}"]


@pytest.mark.parametrize(("mode", "warned"), [(0o640, False), (0o644, True), (0o660, True)])
def test_key_of_root_may_be_read_by_the_group_of_its_user(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: int,
    warned: bool,
) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(mode)
    status = list(path.stat())
    status[stat.ST_UID] = 0
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result(status))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    warn_if_shared(path)
    assert caplog.messages == [f"others can read the key in {path}: chmod 640 {path}"] * warned
