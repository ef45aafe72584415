"""libnbd in its strict mode, the default, with which nbdsh, nbdcopy and the virt tools come."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from aiovblk import BlockDevice, Export, serve, tls
from aiovblk.storage import FileDevice, MemoryDevice
from tests.support.certificates import make_certificates

from .programs import run

MIB = 1 << 20
SIZE = 40 * MIB
DEBIAN_PYTHON = "/usr/bin/python3"
STRICTLY = str(Path(__file__).parent / "strict_libnbd_client.py")
AIOVBLK = f"{sys.executable} -m aiovblk"

pytestmark = pytest.mark.deadline(90)


class Disk(MemoryDevice):
    """A disk in memory that can be told to flush."""

    async def flush(self) -> None:
        pass


async def strictly(check: str, uri: str) -> None:
    await run(f"{DEBIAN_PYTHON} {STRICTLY} {check} {shlex.quote(uri)}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture(params=["memory 4096", "memory 64K", "file"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> BlockDevice:
    match request.param:
        case "file":
            return FileDevice.create(tmp_path / "image", SIZE)
        case "memory 64K":
            return Disk(SIZE, block_size=65536)
    return Disk(SIZE)


@pytest.mark.parametrize("check", ["unaligned", "structured", "large", "parallel-1", "parallel-4"])
async def test_requests_of_every_kind_are_served(
    path: Path, device: BlockDevice, check: str
) -> None:
    async with serve(device, unix=path) as server:
        await strictly(check, server.uris[0])


async def test_exports_are_listed_and_each_is_told_of(path: Path) -> None:
    exports = {
        "": Export(Disk(SIZE), "the default one"),
        "disk": Export(Disk(SIZE), "a disk"),
        "bytes ü": Export(Disk(MIB, block_size=1)),
    }
    async with serve(exports, unix=path):
        await strictly("exports", f"nbd+unix:///?socket={path}")


@pytest.mark.parametrize("check", ["unaligned", "parallel-1", "parallel-4"])
async def test_tls_changes_nothing(path: Path, tmp_path: Path, check: str) -> None:
    certificates = make_certificates(tmp_path / "pki")
    context = tls.server_context(certificates)
    async with serve(Disk(SIZE), unix=path, tls=context):
        uri = f"nbds+unix:///?socket={path}&tls-certificates={certificates}"
        await strictly(check, uri)


@pytest.mark.one_loop
@pytest.mark.parametrize("options", ["", "--workers 2"], ids=["one process", "workers"])
async def test_a_byte_of_a_file_may_be_written(tmp_path: Path, options: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(before := os.urandom(MIB))
    script = (
        "import nbd, sys; h = nbd.NBD(); h.connect_systemd_socket_activation(sys.argv[1:]);"
        "h.pwrite(b'x', 7); assert h.pread(9, 3)[4:5] == b'x'; h.flush();"
        "print(h.can_multi_conn()); h.shutdown()"
    )
    command = f'{DEBIAN_PYTHON} -c "{script}" {AIOVBLK} serve file:{image} {options}'
    assert (await run(command)).splitlines()[-1] == "True"
    assert image.read_bytes() == before[:7] + b"x" + before[8:]
