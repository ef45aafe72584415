"""Other people's programs: where they are, and how they are run to their end."""

from __future__ import annotations

import asyncio
import shlex
import shutil

import pytest

PATIENCE = 60.0  # seconds for any one command

PACKAGES = {
    "nbdkit": "nbdkit",
    "qemu-nbd": "qemu-utils",
    "qemu-img": "qemu-utils",
    "nbd-server": "nbd-server",
    "qemu-io": "qemu-utils",
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "fio": "fio",
    "psktool": "gnutls-bin",
    "tmux": "tmux",
}
"""Programs, and the Debian packages that have them."""


def program(name: str) -> str:
    """The path of a program."""
    path = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{name} is missing: install the package {PACKAGES[name]}, or run make setup")
    return path


async def run(command: str, *, status: int = 0) -> str:
    """Run a program, and return what it prints on standard output."""
    name, *arguments = shlex.split(command)
    if "/" not in name:
        name = program(name)
    process = await asyncio.create_subprocess_exec(
        name,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == status, f"{command}\n{(errors + output).decode(errors='replace')}"
    return output.decode(errors="replace")
