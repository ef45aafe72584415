"""Start the command with standard descriptors closed."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
from pathlib import Path

import pytest

import aiovblk

from ...support.polling import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.one_loop,  # the command has its own
    pytest.mark.deadline(60),
]

CLOSINGS = [closed for length in (1, 2, 3) for closed in itertools.combinations((0, 1, 2), length)]

# What a shell does for `<&-`.
WITH_CLOSED = """
import os, sys
for number in sys.argv[1]:
    os.close(int(number))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

SHOW = """
import os, sys
had = os.listdir("/proc/self/fd")
import aiovblk.cli
is_same = had == os.listdir("/proc/self/fd")
with open(sys.argv[1], "w") as file:
    print("the same" if is_same else "others", file=file)
aiovblk.cli.open_standard_descriptors()
with open(sys.argv[1], "a") as file:
    for number in range(3):
        print(number, os.readlink(f"/proc/self/fd/{number}"), os.get_inheritable(number), file=file)
    print(sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno(), file=file)
    print(repr(sys.stdin.read()), sys.stdout.isatty(), sys.stderr.isatty(), file=file)
print("out", flush=True)
print("err", file=sys.stderr, flush=True)
"""


async def run(closed: tuple[int, ...], *words: str) -> asyncio.subprocess.Process:
    numbers = "".join(map(str, closed))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WITH_CLOSED, numbers, *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("closed", [(), *CLOSINGS], ids=str)
async def test_those_that_are_closed_are_opened_on_dev_null_and_no_others(
    tmp_path: Path, closed: tuple[int, ...]
) -> None:
    process = await run(closed, "-c", SHOW, str(tmp_path / "out"))
    output, errors = await process.communicate()
    assert process.returncode == 0, errors
    _, *shown, numbers, streams = (tmp_path / "out").read_text().splitlines()
    for number in range(3):
        _, target, inheritable = shown[number].split()
        assert inheritable == "True"
        assert (target == "/dev/null") == (number in closed or number == 0)
    assert numbers == "0 1 2"
    assert streams == "'' False False"
    assert output == (b"" if 1 in closed else b"out\n")
    assert errors == (b"" if 2 in closed else b"err\n")


async def test_modules_open_nothing_before_the_command_begins(tmp_path: Path) -> None:
    """Else a module's descriptor would have one of the numbers, and be taken for the standard's."""
    process = await run((0, 1, 2), "-c", SHOW, str(tmp_path / "out"))
    assert await process.wait() == 0
    assert (tmp_path / "out").read_text().splitlines()[0] == "the same"


async def test_modules_leave_ctypes_to_who_calls_it() -> None:
    """With it some builds of libffi keep a file open: as above, but whatever this machine has."""
    process = await run((), "-c", "import sys, aiovblk.cli; sys.exit('ctypes' in sys.modules)")
    assert await process.communicate() == (b"", b"")
    assert process.returncode == 0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("closed", CLOSINGS, ids=str)
async def test_command_does_what_it_is_to_do(
    tmp_path: Path, closed: tuple[int, ...], loop: str
) -> None:
    words = ("-m", "aiovblk", "copy", "memory:1M", f"file:{tmp_path}/out", "--loop", loop)
    process = await run(closed, *words)
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert (tmp_path / "out").read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]], ids=["one process", "workers"])
async def test_server_and_its_workers_serve_without_them(
    tmp_path: Path, workers: list[str]
) -> None:
    image, path = tmp_path / "image", tmp_path / "socket"
    image.write_bytes(bytes(1 << 20))
    words = ("-m", "aiovblk", "serve", f"file:{image}", "--socket", str(path), *workers)
    process = await run((0, 1, 2), *words)
    try:
        # Nothing is printed.
        await until(lambda: path.exists() or process.returncode is not None, interval=0.01)
        assert process.returncode is None
        async with aiovblk.connect(f"nbd+unix:///?socket={path}") as remote:
            await remote.write(0, b"x" * 512)
            await remote.flush()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert image.read_bytes()[:512] == b"x" * 512


async def test_stdio_without_a_client_is_an_error() -> None:
    for closed in ((0,), (1,), (0, 1)):
        process = await run(closed, "-m", "aiovblk", "serve", "memory:1M", "--stdio")
        _, errors = await process.communicate()
        assert process.returncode == 1
        assert errors == (
            b"aiovblk: --stdio needs a client at standard input and output; one is /dev/null\n"
        )


async def test_errors_and_tables_are_printed_nowhere() -> None:
    for words, status in ((("mount", "nothing"), 2), (("list",), 0), (("top", "--once"), 0)):
        process = await run((1, 2), "-m", "aiovblk", *words)
        assert await process.communicate() == (b"", b"")
        assert process.returncode == status
