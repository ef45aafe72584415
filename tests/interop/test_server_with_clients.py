"""The server, judged by clients that nobody here wrote: libnbd, qemu, fio, nbdkit."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from aiovblk import BlockDevice, Export, serve, tls
from aiovblk.storage import FileDevice, MemoryDevice
from tests.support.certificates import make_certificates

from .programs import run

MIB = 1024 * 1024
SIZE = 8 * MIB
DEBIAN_PYTHON = "/usr/bin/python3"
WITH_LIBNBD = str(Path(__file__).parent / "python_libnbd_client.py")

pytestmark = pytest.mark.deadline(90)


class Disk(MemoryDevice):
    """A disk in memory that can be told to flush."""

    async def flush(self) -> None:
        pass


async def with_libnbd(uri: str, check: str) -> None:
    if not list(Path("/usr/lib/python3/dist-packages").glob("nbd.py")):
        pytest.fail("Debian's Python has no nbd: install the package python3-libnbd")
    await run(f"{DEBIAN_PYTHON} {WITH_LIBNBD} '{uri}' {check}")


def pattern(size: int, *, seed: bytes = b"aiovblk") -> bytes:
    return (seed * (size // len(seed) + 1))[:size]


def contents(device: MemoryDevice) -> bytes:
    return device._memory[:]


def sparse_file(path: Path) -> Path:
    """8 MiB, of which 1 MiB in the middle and the last 64 KiB are no hole."""
    with path.open("wb") as file:
        file.seek(3 * MIB)
        file.write(pattern(MIB))
        file.seek(SIZE - 65536)
        file.write(pattern(65536, seed=b"end"))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def device() -> MemoryDevice:
    return Disk(SIZE)


def uri_of(path: Path, export: str = "", scheme: str = "nbd+unix") -> str:
    return f"{scheme}:///{export}?socket={path}"


# libnbd: nbdinfo, nbdcopy, and its Python module


async def test_nbdinfo_tells_what_was_declared(path: Path, device: MemoryDevice) -> None:
    exports = {"disk": Export(device, "a disk"), "locked": Export(device, read_only=True)}
    async with serve(exports, unix=path):
        told = json.loads(await run(f"nbdinfo --json '{uri_of(path, 'disk')}'"))
        assert (told["protocol"], told["TLS"]) == ("newstyle-fixed", False)
        [export] = told["exports"]
        expected = {
            "export-name": "disk",
            "description": "a disk",
            "export-size": SIZE,
            "is_read_only": False,
            "can_multi_conn": True,
            "can_fast_zero": True,
            "can_trim": True,
            "can_zero": True,
            "can_df": True,
            "contexts": ["base:allocation"],
            "block_size_maximum": 32 * MIB,
        }
        assert {name: export[name] for name in expected} == expected
        listed = json.loads(await run(f"nbdinfo --list --json 'nbd+unix:///?socket={path}'"))
        assert {each["export-name"]: each["is_read_only"] for each in listed["exports"]} == {
            "disk": False,
            "locked": True,
        }
        await run(f"nbdinfo '{uri_of(path, 'nothing')}'", status=1)


@pytest.mark.one_loop
async def test_nbdinfo_finds_each_capability_that_is_overridden(path: Path) -> None:
    class Bare(BlockDevice):
        blocks = 16

        async def read(self, offset: int, length: int) -> bytes:
            return bytes(length)

    class Caching(Bare):
        rotational = True

        async def cache(self, offset: int, length: int) -> None:
            pass

    exports: dict[str, Any] = {
        "full": Disk(SIZE),
        "bare": Bare(),
        "caching": Caching(),
        "own": lambda: Disk(SIZE),
    }
    async with serve(exports, unix=path):
        for export, question, yes in [
            ("full", "--can write", True),
            ("full", "--can flush", True),
            ("full", "--can fua", True),
            ("full", "--can trim", True),
            ("full", "--can zero", True),
            ("full", "--can fast-zero", True),
            ("full", "--can df", True),
            ("full", "--can multi-conn", True),
            ("full", "--can cache", False),
            ("full", "--can structured", True),
            ("full", "--is read-only", False),
            ("full", "--is rotational", False),
            ("full", "--is tls", False),
            ("bare", "--is read-only", True),
            ("bare", "--can flush", False),
            ("bare", "--can trim", False),
            ("bare", "--can multi-conn", True),
            ("caching", "--can cache", True),
            ("caching", "--is rotational", True),
            ("own", "--can multi-conn", False),
        ]:
            await run(f"nbdinfo {question} '{uri_of(path, export)}'", status=0 if yes else 2)


async def test_nbdinfo_maps_holes_and_data(path: Path, device: MemoryDevice) -> None:
    await device.write(MIB, memoryview(bytes(MIB)))
    async with serve(device, unix=path):
        told = json.loads(await run(f"nbdinfo --map --json '{uri_of(path)}'"))
    assert [(each["offset"], each["length"], each["type"]) for each in told] == [
        (0, MIB, 3),
        (MIB, MIB, 0),
        (2 * MIB, SIZE - 2 * MIB, 3),
    ]


@pytest.mark.parametrize("options", ["", "--connections=4 --requests=32 --request-size=65536"])
async def test_nbdcopy_there_and_back_keeps_bytes_and_holes(
    path: Path, tmp_path: Path, options: str
) -> None:
    source, copy = sparse_file(tmp_path / "source"), tmp_path / "copy"
    disk = tmp_path / "disk"
    async with serve(FileDevice.create(disk, SIZE), unix=path):
        await run(f"nbdcopy {options} {source} '{uri_of(path)}'")
        await run(f"nbdcopy {options} '{uri_of(path)}' {copy}")
    assert source.read_bytes() == disk.read_bytes() == copy.read_bytes()
    for file in (disk, copy):
        assert file.stat().st_blocks * 512 <= 2 * MIB


@pytest.mark.parametrize("check", ["many", "errors", "sparse"])
async def test_libnbd_finds_nothing_wrong(path: Path, device: MemoryDevice, check: str) -> None:
    async with serve(device, unix=path) as server:
        await with_libnbd(server.uris[0], check)


async def test_libnbd_finds_nothing_wrong_with_what_cannot_be_changed(
    path: Path, device: MemoryDevice
) -> None:
    async with serve(Export(device, read_only=True), unix=path) as server:
        await with_libnbd(server.uris[0], "read-only")
    assert contents(device) == bytes(SIZE)


async def test_libnbd_over_tcp(device: MemoryDevice) -> None:
    async with serve(device, host="127.0.0.1", port=0) as server:
        await with_libnbd(server.uris[0], "many")


# qemu


async def test_qemu_img_converts_and_compares(path: Path, tmp_path: Path) -> None:
    source, copy = sparse_file(tmp_path / "source"), tmp_path / "copy"
    device = MemoryDevice(SIZE)
    async with serve(device, unix=path):
        uri = uri_of(path)
        await run(f"qemu-img convert -n -f raw -O raw {source} '{uri}'")
        assert contents(device) == source.read_bytes()
        await run(f"qemu-img convert -m 8 -W -f raw -O raw '{uri}' {copy}")
        assert "identical" in await run(f"qemu-img compare -f raw -F raw {source} '{uri}'")
        info = json.loads(await run(f"qemu-img info --output=json -f raw '{uri}'"))
        assert info["virtual-size"] == SIZE
        mapped = json.loads(await run(f"qemu-img map --output=json -f raw '{uri}'"))
        data = [(each["start"], each["length"]) for each in mapped if each["data"]]
        assert data == [(3 * MIB, MIB), (SIZE - 256 * 1024, 256 * 1024)]
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks * 512 <= 2 * MIB


async def test_qemu_img_keeps_many_requests_in_flight(path: Path, device: MemoryDevice) -> None:
    async with serve(device, unix=path):
        uri = uri_of(path)
        await run(f"qemu-img bench -f raw -c 2000 -d 64 -s 4096 '{uri}'")
        await run(f"qemu-img bench -w -f raw -c 2000 -d 64 -s 4096 --pattern=7 '{uri}'")
    assert contents(device)[: 2000 * 4096] == b"\7" * (2000 * 4096)


async def test_qemu_io_writes_reads_zeroes_and_discards(path: Path, device: MemoryDevice) -> None:
    commands = [
        "write -P 0x11 0 1M",
        "write -P 0x22 -f 1M 64k",
        "write -P 0x33 4097 511",
        "flush",
        "read -P 0x11 0 4097",
        "read -P 0x33 4097 511",
        "read -P 0x11 4608 64k",
        "write -z 64k 64k",
        "write -z -u 128k 64k",
        "read -P 0 64k 128k",
        "discard 256k 64k",
        "read -P 0x11 512k 512k",
        "read -P 0x22 1M 64k",
        "aio_write -P 0x44 2M 1M",
        "aio_read -P 0 4M 1M",
        "aio_flush",
        "read -P 0x44 2M 1M",
    ]
    options = " ".join(f"-c '{command}'" for command in commands)
    async with serve(device, unix=path):
        output = await run(f"qemu-io -f raw {options} '{uri_of(path)}'")
    assert "failed" not in output
    assert contents(device)[65536 : 3 * 65536] == bytes(128 * 1024)


# fio and nbdkit


async def test_fio_verifies_what_it_wrote(path: Path, device: MemoryDevice, tmp_path: Path) -> None:
    async with serve(device, unix=path):
        await run(
            f"fio --name=verify --directory={tmp_path} --ioengine=nbd --uri='{uri_of(path)}' "
            "--rw=randrw --bsrange=4k-64k --iodepth=32 --size=8M --verify=crc32c "
            "--verify_fatal=1 --verify_state_save=0 --randseed=7 --thread"
        )


async def test_nbdkit_passes_the_export_on(path: Path, tmp_path: Path) -> None:
    source, copy = sparse_file(tmp_path / "source"), tmp_path / "copy"
    device = MemoryDevice(SIZE)
    async with serve({"disk": device}, unix=path):
        inner = f'nbdcopy {source} "$uri" && nbdcopy "$uri" {copy}'
        await run(
            f"nbdkit -U - nbd uri='{uri_of(path, 'disk')}' shared=true --run {shlex.quote(inner)}"
        )
    assert source.read_bytes() == contents(device) == copy.read_bytes()


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("pki"))


def commands_with_tls(path: Path, certificates: Path) -> dict[str, str]:
    uri = f"{uri_of(path, 'disk', 'nbds+unix')}&tls-certificates={certificates}"
    credentials = f"tls-creds-x509,id=tls,dir={certificates},endpoint=client"
    options = f"driver=nbd,path={path},export=disk,tls-creds=tls,tls-hostname=localhost"
    return {
        "libnbd": f"nbdinfo --json '{uri}'",
        "qemu": f"qemu-img info --output=json --object {credentials} --image-opts {options}",
        "nbdkit": f"nbdkit -U - nbd socket={path} export=disk tls=require "
        f"tls-certificates={certificates} --run 'nbdinfo --json \"$uri\"'",
    }


@pytest.mark.parametrize("verify", [False, True], ids=["anybody", "certified clients"])
@pytest.mark.parametrize("client", ["libnbd", "qemu", "nbdkit"])
async def test_tls_with_certificates(
    path: Path, certificates: Path, device: MemoryDevice, client: str, verify: bool
) -> None:
    context = tls.server_context(certificates, verify_peer=verify)
    async with serve({"disk": device}, unix=path, tls=context):
        told = await run(commands_with_tls(path, certificates)[client])
        assert str(SIZE) in told
        await run(f"nbdinfo '{uri_of(path, 'disk')}'", status=1)


async def test_nbdcopy_over_tls(path: Path, certificates: Path, tmp_path: Path) -> None:
    source, device = sparse_file(tmp_path / "source"), MemoryDevice(SIZE)
    context = tls.server_context(certificates)
    async with serve(device, unix=path, tls=context, require_tls=False):
        uri = f"{uri_of(path, '', 'nbds+unix')}&tls-certificates={certificates}"
        await run(f"nbdcopy --connections=4 {source} '{uri}'")
        await run(f"nbdcopy '{uri_of(path)}' {tmp_path / 'copy'}")
    assert source.read_bytes() == contents(device) == (tmp_path / "copy").read_bytes()


if sys.version_info >= (3, 13):

    async def test_tls_with_pre_shared_keys(
        path: Path, tmp_path: Path, device: MemoryDevice
    ) -> None:
        keys = tmp_path / "keys.psk"
        await run(f"psktool --username=alice --pskfile={keys}")
        async with serve(device, unix=path, tls=tls.psk_server_context(keys)):
            uri = f"nbds+unix://alice@/?socket={path}&tls-psk-file={keys}"
            assert str(SIZE) in await run(f"nbdinfo --json '{uri}'")
            keys.write_text(f"alice:{'ab' * 32}\n")
            await run(f"nbdinfo '{uri}'", status=1)
