"""The code blocks of README.md, run as they stand."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk import kernel

from .support import Disk, pread

pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]

README = Path(__file__).parents[2] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.core
async def test_the_first_device_is_dead_beef(monkeypatch: pytest.MonkeyPatch) -> None:
    # The block ends in asyncio.run, which cannot run in here; what it was to run can.
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(aiovblk, "mount", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(asyncio, "run", lambda nothing: None)
    exec(blocks()[0], {})
    [(device, path)] = calls
    assert path == "/dev/nbd0"
    async with aiovblk.mounted(device, path):
        assert await asyncio.to_thread(pread, path, 0, 4096) == b"\xde\xad\xbe\xef" * 1024


@pytest.mark.core
@pytest.mark.slow
async def test_the_block_form_serves_until_it_is_unmounted() -> None:
    printed: asyncio.Queue[str] = asyncio.Queue()
    names: dict[str, Any] = {
        "aiovblk": aiovblk,
        "device": Disk(),
        "print": lambda path, stats: printed.put_nowait(path),
    }
    exec("async def block():\n" + textwrap.indent(blocks()[1], "    "), names)
    running = asyncio.create_task(names["block"]())
    path = await printed.get()
    await asyncio.to_thread(kernel.unmount, path)
    await running


def test_no_block_is_left_out() -> None:
    assert (
        len(blocks()) == 3
    )  # the last needs no kernel: tests/unit/docs/test_network_pages.py runs it
