"""``aiovblk serve`` and ``aiovblk copy`` with other people's programs at the other end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.certificates import make_certificates

from .programs import run
from .servers import serving

MIB = 1 << 20
SIZE = 16 * MIB
AIOVBLK = f"{sys.executable} -m aiovblk"
DEBIAN_PYTHON = "/usr/bin/python3"

pytestmark = [pytest.mark.deadline(90), pytest.mark.one_loop]  # programs choose their own


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Data in the middle and at the end, holes before them."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        for offset in (5 * MIB, SIZE - 65536):
            file.seek(offset)
            file.write(os.urandom(65536))
    return path


def is_sparse(path: Path) -> bool:
    return path.stat().st_blocks * 512 < SIZE // 2


async def test_nbdinfo_and_nbdcopy_activate_it_as_systemd_does(image: Path, tmp_path: Path) -> None:
    server = f"[ {AIOVBLK} serve file:{image} --read-only ]"
    await run(f"nbdinfo --is read-only -- {server}")
    copy = tmp_path / "copy"
    await run(f"nbdcopy --connections=4 -- {server} {copy}")
    assert copy.read_bytes() == image.read_bytes()
    assert is_sparse(copy)


async def test_libnbd_starts_it_with_its_end_of_a_socket(image: Path) -> None:
    script = (
        "import nbd, sys; h = nbd.NBD(); h.connect_command(sys.argv[1:]);"
        "print(h.get_size()); h.shutdown()"
    )
    command = f'{DEBIAN_PYTHON} -c "{script}" {AIOVBLK} serve file:{image} --stdio'
    assert (await run(command)).strip() == str(SIZE)


async def test_certificates_of_a_directory_are_used(image: Path, tmp_path: Path) -> None:
    directory = make_certificates(tmp_path / "pki")
    server = f"{AIOVBLK} serve disk=file:{image} --tls-verify-peer --tls-certificates {directory}"
    script = (
        "import nbd, sys; h = nbd.NBD(); h.set_tls(nbd.TLS_REQUIRE);"
        f"h.set_tls_certificates('{directory}'); h.set_export_name('disk');"
        "h.connect_systemd_socket_activation(sys.argv[1:]); print(h.get_size()); h.shutdown()"
    )
    assert str(SIZE) in await run(f'{DEBIAN_PYTHON} -c "{script}" {server}')


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_copy_to_qemu_nbd_and_back(image: Path, tmp_path: Path, form: str) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    await run(f"qemu-img create -q -f {form} {disk} {SIZE}")
    with serving("qemu-nbd", "-t", "-e", "8", "-f", form, str(disk)) as server:
        uri = f"nbd+unix:///?socket={server.path}"
        await run(f"{AIOVBLK} copy file:{image} {uri}")
        await run(f"{AIOVBLK} copy {uri} file:{copy}")
    await run(f"qemu-img compare -f {form} -F raw {disk} {image}")
    assert copy.read_bytes() == image.read_bytes()
    assert is_sparse(copy)
    assert is_sparse(disk)


async def test_copy_from_nbdkit(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with serving("nbdkit", "-f", "sparse-random", "16M", "percent=20", "seed=7") as server:
        uri = f"nbd+unix:///?socket={server.path}"
        await run(f"{AIOVBLK} copy --requests 8 {uri} file:{copy}")
        await run(f"nbdcopy -- {uri} {tmp_path}/other")
    assert copy.read_bytes() == (tmp_path / "other").read_bytes()
    assert is_sparse(copy)
