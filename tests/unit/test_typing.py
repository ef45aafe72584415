"""mypy and pyright accept the declarations that the docs allow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import aiovblk

pytestmark = pytest.mark.slow

DECLARATIONS = """
import aiovblk


class ByClass(aiovblk.BlockDevice):
    block_size = 512
    blocks = 10
    read_only = True
    rotational = True
    multi_conn = True
    outages = (KeyError,)


class Annotated(aiovblk.BlockDevice):
    block_size: int = 512
    blocks: int = 10
    read_only: bool = False


class ByInstance(aiovblk.BlockDevice):
    def __init__(self, blocks: int) -> None:
        self.block_size = 1024
        self.blocks = blocks
        self.read_only = True
        self.rotational = False


class ByProperty(aiovblk.BlockDevice):
    @property
    def block_size(self) -> int:
        return 512

    @property
    def blocks(self) -> int:
        return 10

    @property
    def read_only(self) -> bool:
        return True

    @property
    def rotational(self) -> bool:
        return False

    @property
    def multi_conn(self) -> bool:
        return False


class Resizable(aiovblk.BlockDevice):
    _blocks = 10

    @property
    def blocks(self) -> int:
        return self._blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        self._blocks = value


class Derived(ByProperty):
    @property
    def blocks(self) -> int:
        return super().blocks + 1


def grow(device: aiovblk.BlockDevice) -> int:
    device.blocks = device.blocks + 1
    device.read_only = True
    return device.size
"""

HANDLERS = """
from collections.abc import Awaitable, Sequence

import aiovblk
from aiovblk import Extent


class Disk(aiovblk.BlockDevice):
    blocks = 10

    def __init__(self) -> None:
        self.content = bytearray(self.size)

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    async def write(self, offset: int, data: memoryview) -> None:
        self.content[offset : offset + len(data)] = data

    async def flush(self) -> None: ...

    async def trim(self, offset: int, length: int) -> None: ...

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None: ...

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return [Extent(length, zero=True)]

    async def cache(self, offset: int, length: int) -> None: ...

    async def unmount(self) -> None: ...


class Views(aiovblk.BlockDevice):
    blocks = 10

    async def read(self, offset: int, length: int) -> memoryview:
        return memoryview(bytes(length))
"""

PROGRAM = """
import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import aiovblk
from aiovblk.events import RequestFailed, SlowRequest
from aiovblk.server import Export
from aiovblk.storage import Cache, FileDevice, Intercept, Layer, MemoryDevice
from aiovblk.storage import Mirror, Overlay, ReadOnly
from aiovblk.testing import check_block_device

T = TypeVar("T")


class Disk(aiovblk.BlockDevice):
    blocks = 10

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


class Upper(Layer):
    def __init__(self, inner: aiovblk.BlockDevice) -> None:
        super().__init__(inner)
        self.read_only = True

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        return await self.inner.read(offset, length)


class Half(Layer):
    @property
    def blocks(self) -> int:
        blocks: int = self.inner.blocks // 2
        return blocks


class Counted(Intercept):
    count = 0

    async def intercept(
        self, command: str, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> T:
        self.count += 1
        return await call()


async def make() -> aiovblk.BlockDevice:
    return Disk()


async def main() -> None:
    disk = Disk()
    await aiovblk.mount(disk, "/dev/nbd0")
    await aiovblk.mount(Disk, workers=2)
    await aiovblk.mount(partial(FileDevice, "/srv/image"), workers=2)
    async with aiovblk.mounted(make, replace=True, identity="disk") as mount:
        await mount.resize(20)
        print(mount.path, mount.index, mount.stats.reads)
    layers = Counted(ReadOnly(Cache(Upper(MemoryDevice(1 << 20)), size=1 << 20)))
    mirror = Mirror(disk, await Overlay.create(disk, MemoryDevice(1 << 20)))
    async with aiovblk.serve({"a": disk, "b": Export(layers), "c": make, "d": mirror}) as server:
        async for event in server.events():
            match event:
                case RequestFailed(command, offset, length, errno):
                    print(command, offset, length, errno, event.reason, event.peer)
                case SlowRequest():
                    print(event.seconds)
    async with aiovblk.serve(Disk, workers=2), aiovblk.connect("nbd://localhost") as remote:
        data = await remote.read(0, 4096)
        await remote.write(0, memoryview(bytes(data)))
    await check_block_device(Disk)
    await check_block_device(lambda: MemoryDevice(1 << 20))


asyncio.run(main())
"""

PROGRAMS = {"declarations": DECLARATIONS, "handlers": HANDLERS, "program": PROGRAM}

MISTAKES = """
import aiovblk
from aiovblk.testing import check_block_device


class Sync(aiovblk.BlockDevice):
    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


async def main() -> None:
    await aiovblk.mount("disk.img")
    await check_block_device(Sync())
    print(Sync().blcoks)
"""

CHECKERS = {
    "mypy": ("mypy", "--strict", "--follow-imports=silent", "--cache-dir", "{cache}"),
    "pyright": ("pyright", "--pythonpath", sys.executable),
}


def check(checker: str, folder: Path, *programs: Path) -> subprocess.CompletedProcess[str]:
    # An editable installation is found by a hook at run time, which these do not run.
    (folder / "aiovblk").symlink_to(Path(aiovblk.__file__).parent)
    words = [word.format(cache=folder / "cache") for word in CHECKERS[checker]]
    # Without the project's own configuration: a user has another one.
    return subprocess.run(
        [sys.executable, "-m", *words, *map(str, programs)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.deadline(600)
def test_programs_as_the_docs_have_them_pass(checker: str, tmp_path: Path) -> None:
    paths: list[Path] = []
    for name, text in PROGRAMS.items():
        paths.append(tmp_path / f"user_{name}.py")
        paths[-1].write_text(text)
    done = check(checker, tmp_path, *paths)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.deadline(600)
def test_mistakes_are_still_seen(checker: str, tmp_path: Path) -> None:
    path = tmp_path / "user_mistakes.py"
    path.write_text(MISTAKES)
    done = check(checker, tmp_path, path)
    lines = [at for at, line in enumerate(MISTAKES.splitlines(), 1) if _is_wrong(line)]
    assert len(lines) == 4
    for line in lines:
        assert f"user_mistakes.py:{line}:" in done.stdout, done.stdout + done.stderr


def _is_wrong(line: str) -> bool:
    return any(each in line for each in ("def read", "disk.img", "Sync())", "blcoks"))
