"""What the kernel tests share: commands with deadlines, direct I/O in threads, watched devices."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from anyio.abc import TaskStatus

from aiovblk import BlockDevice, Mount, mount
from aiovblk.kernel.sysfs import wait_until_free
from aiovblk.mounting import Attach
from aiovblk.storage import MemoryDevice

from ..support.polling import holds_within
from .programs import Fork, ForkServer

MIB = 1024 * 1024
# Seconds for any one command. They are to end what hangs, not to measure: an emulated machine is
# slow, and many times slower when others are busy on its host.
PATIENCE = 400.0
# Seconds for what must not remain after a test to go, where it is about to: a bound on the product.
MOMENT = 1.0
DEVICES = f"{Path(__file__).parent}/devices.py"


class Disk(MemoryDevice):
    """A memory disk that keeps account of what reached it, and can make requests wait."""

    def __init__(self, size: int = 64 * MIB, *, block_size: int = 4096) -> None:
        super().__init__(size, block_size=block_size)
        self.events: list[str] = []
        self.lengths: dict[str, list[int]] = {"read": [], "write": [], "trim": [], "zeroes": []}
        self.held = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()

    async def pass_gate(self) -> None:
        if not self.gate.is_set():
            self.held += 1
            self.arrived.set()
            await self.gate.wait()

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        self.lengths["read"].append(length)
        await self.pass_gate()
        return await super().read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        self.lengths["write"].append(len(data))
        await self.pass_gate()
        await super().write(offset, data)

    async def trim(self, offset: int, length: int) -> None:
        self.lengths["trim"].append(length)
        await super().trim(offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        self.lengths["zeroes"].append(length)
        await super().write_zeroes(offset, length, may_trim=may_trim)

    async def flush(self) -> None:
        self.events.append("flush")

    async def unmount(self) -> None:
        self.events.append("unmount")

    def contents(self, offset: int, length: int) -> bytes:
        return self._memory[offset : offset + length]


class Plain(BlockDevice):
    """All ones, with the handlers that a device must have, and no other."""

    blocks = 1024

    def __init__(self) -> None:
        self.memory = bytearray(b"\xff" * self.size)

    async def read(self, offset: int, length: int) -> bytearray:
        return self.memory[offset : offset + length]

    async def write(self, offset: int, data: memoryview) -> None:
        self.memory[offset : offset + len(data)] = data


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    output: str


async def sh(command: str, *, ok: bool = True, patience: float = PATIENCE) -> Done:
    """Run a shell command; with `ok`, it must succeed."""
    async with asyncio.timeout(patience):
        process = await asyncio.create_subprocess_shell(
            command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
    done = Done(process.returncode or 0, output.decode(errors="replace"))
    assert done.status == 0 or not ok, f"{command}: status {done.status}\n{done.output}"
    return done


async def fio(path: str, options: str, *, patience: float = PATIENCE) -> Done:
    """Run fio on a device; it must find no error."""
    command = f"fio --name=t --filename={path} --direct=1 --minimal {options}"
    return await sh(command, patience=patience)


def pread(path: str, offset: int, length: int, *, direct: bool = True) -> bytes:
    """Read, past the page cache by default."""
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        with mmap.mmap(-1, length) as buffer:
            count = os.preadv(fd, [buffer], offset)
            return buffer[:count]
    finally:
        os.close(fd)


def pwrite(path: str, offset: int, data: bytes, *, direct: bool = True) -> int:
    """Write, past the page cache by default."""
    fd = os.open(path, os.O_WRONLY | (os.O_DIRECT if direct else 0))
    try:
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            return os.pwritev(fd, [buffer], offset)
    finally:
        os.close(fd)


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that differ from sector to sector, so that a misplaced one shows."""
    return b"".join(
        (seed * 1_000_003 + sector).to_bytes(8, "big") * 64 for sector in range(length // 512)
    )


DATA = pattern(MIB)


async def becomes_free(path: str) -> bool:
    """Whether a device can be mounted again, soon after a server that had no time for goodbyes."""
    index = int(path.removeprefix("/dev/nbd"))
    return await asyncio.to_thread(wait_until_free, index, PATIENCE)


async def becomes_true(condition: Callable[[], bool]) -> None:
    """Wait for what cannot be waited for otherwise: it shows in files, or another process does it.

    The looks are in a thread, since they may block.
    """
    in_time = await asyncio.to_thread(holds_within, PATIENCE, condition)
    assert in_time, "it does not become true"


async def stuck_tasks() -> list[str]:
    """Other processes that sleep uninterruptibly and do not run meanwhile.

    One that reads a file of its own, or ends, is seen so for a moment; so what is found has a
    second to run.
    """
    stuck = _in_uninterruptible_sleep()

    def all_have_run() -> bool:
        now = _in_uninterruptible_sleep()
        for process in [each for each, seen in stuck.items() if now.get(each) != seen]:
            del stuck[process]
        return not stuck

    if stuck:
        await asyncio.to_thread(holds_within, MOMENT, all_have_run)
    return [name for name, _ in stuck.values()]


def _in_uninterruptible_sleep() -> dict[str, tuple[str, str]]:
    """Name, and how often each has run; threads of the kernel are no processes."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            own = process.name == str(os.getpid())
            if fields[0] == "D" and not own and (process / "cmdline").read_bytes():
                runs = (process / "status").read_text().partition("voluntary_ctxt_switches:")[2]
                found[process.name] = (process / "comm").read_text().strip(), runs
    return found


class Program:
    """A process that serves a device, and what it printed."""

    def __init__(self, process: asyncio.subprocess.Process | Fork) -> None:
        self.process = process
        self.path = ""

    async def line(self) -> str:
        """The next line of its output, on stdout or stderr."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def rest(self) -> str:
        """What it prints until it ends."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await self.process.stdout.read()).decode()

    async def end(self, signum: signal.Signals | None = None) -> int:
        """Send a signal, if any, and wait for the exit status."""
        if signum is not None:
            self.process.send_signal(signum)
        async with asyncio.timeout(PATIENCE):
            # wait() waits for the end of its output as well, which a successor may go on with.
            while (status := self.process.returncode) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return status


fork_servers: list[ForkServer] = []
"""That of this session."""


@contextlib.asynccontextmanager
async def program(*arguments: str, **environment: str) -> AsyncIterator[Program]:
    """Run Python with arguments; it does not outlive the block.

    It is a fork of what has everything imported; :func:`interpreter` starts a new one.
    """
    process = await fork_servers[0].start(arguments, os.environ | environment)
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            # It may have ended just now, and been reaped, without its status being here.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        async with asyncio.timeout(PATIENCE):
            await process.wait()
        process.close()


async def aiovblk(*arguments: str, **environment: str) -> Done:
    """Run the command until it ends by itself."""
    async with program("-m", "aiovblk", *arguments, **environment) as running:
        output = await running.rest()
        return Done(await running.end(), output)


async def unmount(path: str) -> Done:
    """Run ``aiovblk unmount``, which by default waits less than a server takes in a busy guest."""
    return await aiovblk("unmount", f"--timeout={PATIENCE}", path)


def interpreter(
    *arguments: str, **environment: str
) -> contextlib.AbstractAsyncContextManager[Program]:
    """Run Python with arguments, as a user starts it."""
    return executed(sys.executable, *arguments, **environment)


@contextlib.asynccontextmanager
async def executed(*words: str, **environment: str) -> AsyncIterator[Program]:
    """Run a program of any kind; it does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | environment,
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(PATIENCE):
            await process.wait()


def files_of(process: int) -> list[str]:
    """What a process has open."""
    found = []
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            found.append(os.readlink(entry))
    return found


async def stopped(process: int) -> None:
    """Wait until all threads of a process have stopped, as SIGSTOP and Ctrl-Z have them do."""
    states = Path(f"/proc/{process}/task")
    await becomes_true(
        lambda: all(
            (each / "stat").read_text().rpartition(")")[2].split()[0] == "T"
            for each in states.iterdir()
        )
    )


@contextlib.asynccontextmanager
async def command(
    *arguments: str, fresh: bool = False, **environment: str
) -> AsyncIterator[Program]:
    """Run `aiovblk mount` and enter when it is mounted."""
    attach = f"--attach={os.environ['ATTACH']}"  # of the fixture of that name
    start = interpreter if fresh else program
    words = ("-m", "aiovblk", "mount", attach, *arguments)
    async with start(*words, **environment) as running:
        line = await running.line()
        assert line.startswith("mounted /dev/"), line + await running.rest()
        running.path = line.split()[1]
        yield running


@contextlib.asynccontextmanager
async def file_system(path: str, folder: Path) -> AsyncIterator[Path]:
    """A new ext4 on a node, mounted below `folder`, for the length of the block."""
    point = folder / "mnt"
    point.mkdir()
    await sh(f"mkfs.ext4 -q {path} && mount {path} {point}")
    try:
        yield point
    finally:
        await sh(f"umount {point}")


@contextlib.asynccontextmanager
async def kept_open(path: str) -> AsyncIterator[int]:
    """The last close of a node would write back what is cached for it, which is to be left."""
    fd = await asyncio.to_thread(os.open, path, os.O_RDONLY)
    try:
        yield fd
    finally:
        await asyncio.to_thread(os.close, fd)


async def leave_dirty_pages(path: str) -> None:
    """Write through the page cache, as a program does that neither syncs nor waits."""
    assert await asyncio.to_thread(pwrite, path, 0, DATA, direct=False) == MIB


async def store(point: Path) -> None:
    """Write a file: in a thread, since on a device of this process it waits for this loop."""
    assert await asyncio.to_thread((point / "file").write_bytes, DATA) == MIB


async def stored(point: Path) -> bool:
    return await asyncio.to_thread((point / "file").read_bytes) == DATA


def assert_stored_and_said_goodbye(disk: Disk) -> None:
    assert disk.contents(0, MIB) == DATA
    assert disk.events[-2:] == ["flush", "unmount"]
    assert disk.events.count("unmount") == 1


class Status(TaskStatus[Mount]):
    """Receives the mount of a task that no group has started."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Mount] = asyncio.get_running_loop().create_future()

    def started(self, value: Mount | None = None) -> None:
        assert value is not None
        self.future.set_result(value)


async def mounted_in_a_task(
    disk: Disk, unmount_timeout: float = 30.0, attach: Attach = "auto"
) -> tuple[asyncio.Task[None], Mount]:
    status = Status()
    running = mount(disk, attach=attach, unmount_timeout=unmount_timeout, task_status=status)
    task = asyncio.create_task(running)
    return task, await status.future
