"""What worker processes import: services, and devices that several of them may have."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
from pathlib import Path
from typing import Any

from aiovblk import BlockDevice
from aiovblk.storage import MemoryDevice
from aiovblk.workers import Notify


class Picky(Exception):  # noqa: N818 (its name is as good as any)
    """Can be pickled, and not be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Unpicklable(Exception):  # noqa: N818
    def __reduce__(self) -> str:
        raise TypeError("never")


class Wordless(Exception):  # noqa: N818
    def __repr__(self) -> str:
        raise TypeError("never")


class Services:
    """Does what a test asks for."""

    def __init__(self, log: Path, tell: Notify) -> None:
        self.log = log
        self.tell = tell

    async def add(self, one: int, two: int) -> int:
        return one + two

    async def wait(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def fail(self, how: str) -> None:
        errors: dict[str, BaseException] = {
            "plain": LookupError("no such key"),
            "picky": Picky(1, 2),
            "unpicklable": Unpicklable("cannot travel"),
            "large": LookupError("large " + "x" * 10_000_000),
            "wordless": Wordless("large " + "x" * 10_000_000),
            "cancelled": asyncio.CancelledError(),
        }
        raise errors[how]

    async def give_back(self, what: str) -> Any:
        things = {"lambda": lambda: None, "large": bytes(10_000_000), "picky": Picky(1, 2)}
        return things[what]

    async def say(self, text: str) -> None:
        logging.getLogger("aiovblk.test").warning("%s", text)
        self.tell("said", text, os.getpid())

    async def read(self, sock: Any) -> bytes:
        with sock:
            sock.setblocking(False)
            return await asyncio.get_running_loop().sock_recv(sock, 100)

    async def run_and_end(self, command: list[str]) -> int:
        program = await asyncio.create_subprocess_exec(*command)
        program.terminate()
        return await program.wait()

    async def loop(self) -> str:
        return type(asyncio.get_running_loop()).__module__

    async def hang(self) -> None:
        signal.pause()

    async def exit(self, status: int) -> None:
        os._exit(status)

    async def shutdown(self) -> None:
        self.log.write_text("left")


class Broken:
    def __init__(self, tell: Notify) -> None:
        raise PermissionError("not today")

    async def shutdown(self) -> None:
        pass


class Exhausted:
    def __init__(self, tell: Notify) -> None:
        next(iter(()))

    async def shutdown(self) -> None:
        pass


class Leaving:
    def __init__(self, tell: Notify) -> None:
        os._exit(3)

    async def shutdown(self) -> None:
        pass


class FileOfAll(BlockDevice):
    """A file that each worker opens; what it is and what happened to it is in a log beside it."""

    block_size = 512
    multi_conn = True
    rotational = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDWR)
        self.blocks = os.fstat(self.file).st_size // 512
        self.note("open")

    def note(self, event: str) -> None:
        with open(f"{self.path}.log", "a") as log:
            log.write(f"{event} {os.getpid()}\n")

    async def read(self, offset: int, length: int) -> bytes:
        if offset == 512 * 13:
            os._exit(13)
        if offset == 512 * 14:
            await asyncio.get_running_loop().create_future()
        return os.pread(self.file, length, offset)

    async def write(self, offset: int, data: memoryview) -> None:
        os.pwrite(self.file, data, offset)

    async def flush(self) -> None:
        self.note("flush")

    async def unmount(self) -> None:
        os.close(self.file)
        self.note("unmount")


async def make_late(path: Path) -> FileOfAll:
    await asyncio.sleep(0)
    return FileOfAll(path)


async def make_and_hang(hanging: Path) -> MemoryDevice:
    """Hangs, and its whole process, as soon as the device has been made."""

    def hang() -> None:
        hanging.touch()
        signal.pause()

    asyncio.get_running_loop().call_soon(hang)
    return MemoryDevice(4096)


async def hang_for_ever() -> BlockDevice:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def raise_cancelled() -> BlockDevice:
    raise asyncio.CancelledError


def load_or_raise(path: Path) -> ssl.SSLContext:
    """Fails as soon as the file is gone."""
    if not path.exists():
        raise LookupError("there are no certificates")
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def load_or_hang(path: Path, hanging: Path) -> ssl.SSLContext:
    """Never returns as soon as the one file is gone, and tells so by the other."""
    if not path.exists():
        hanging.touch()
        signal.pause()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


class PlainDisk(BlockDevice):
    """Its author has forgotten ``async``."""

    blocks = 16

    def read(self, offset, length):  # type: ignore[no-untyped-def]
        return bytes(length)


class Panic(BaseException):
    """What a panic in an extension written in Rust becomes."""


class Panicking:
    """A service that fails as hardly any does."""

    def __init__(self, tell: Notify) -> None:
        pass

    async def add(self, one: int, two: int) -> int:
        return one + two

    async def fail(self, how: str) -> None:
        raise {"panic": Panic("in a worker"), "generator exit": GeneratorExit()}[how]

    async def shutdown(self) -> None:
        pass
