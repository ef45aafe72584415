"""Validation of numeric arguments, in every function and class that takes some."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk.arguments import MAX_SECONDS, check_block_size, check_count, check_seconds
from aiovblk.storage import (
    BlockSize,
    Cache,
    Fault,
    FileDevice,
    HTTPDevice,
    MemoryDevice,
    Overlay,
    Partition,
    Retry,
    copy,
)
from aiovblk.storage.objects import Limits, create
from aiovblk.storage.objects.opening import from_url
from aiovblk.testing import CrashableDisk, check_block_device

NAN, INF = float("nan"), float("inf")
MIB = 1 << 20

# The checks


@pytest.mark.parametrize("value", [None, 1e-9, 1, 30.0, MAX_SECONDS])
def test_seconds_that_can_be_are_taken(value: float | None) -> None:
    check_seconds("patience", value)
    check_seconds("patience", value, zero=True)
    check_seconds("patience", 0, zero=True)


@pytest.mark.parametrize("value", [0, -1, -0.5, NAN, INF, -INF, 1e10, 10**400])
def test_seconds_that_cannot_be_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="patience must be a positive number of seconds"):
        check_seconds("patience", value)
    if value:
        with pytest.raises(ValueError, match="patience must be 0 or a positive number of seconds"):
            check_seconds("patience", value, zero=True)


@pytest.mark.parametrize("value", [True, "1", b"1", 1j])
def test_what_is_no_number_is_a_type_error(value: Any) -> None:
    for check in (check_seconds, check_count):
        with pytest.raises(TypeError, match=r"n must be a .*number"):
            check("n", value)
    with pytest.raises(TypeError, match="block_size must be a whole number of bytes"):
        check_block_size(value)


@pytest.mark.parametrize("value", [NAN, INF, 1.0, 1.5])
def test_count_and_block_size_are_no_floats(value: Any) -> None:
    with pytest.raises(TypeError, match="n must be a whole number"):
        check_count("n", value)
    with pytest.raises(TypeError, match="block_size must be a whole number"):
        check_block_size(value)


# All functions that take numbers

Call = Callable[[Any], object]


def device(**_: object) -> MemoryDevice:
    return MemoryDevice(MIB)


def entered(manager: AbstractAsyncContextManager[object]) -> Awaitable[object]:
    return manager.__aenter__()


SECONDS: dict[str, Call] = {
    "handshake_timeout": lambda n: entered(aiovblk.serve(device(), handshake_timeout=n)),
    "drain_timeout": lambda n: entered(aiovblk.serve(device(), drain_timeout=n)),
    "handler_timeout": lambda n: entered(aiovblk.serve(device(), handler_timeout=n)),
    "slow_request": lambda n: entered(aiovblk.serve(device(), slow_request=n)),
    "timeout": lambda n: entered(aiovblk.mounted(device(), timeout=n)),
    "unmount_timeout": lambda n: entered(aiovblk.mounted(device(), unmount_timeout=n)),
    "survive": lambda n: entered(aiovblk.mounted(device(), identity="x", survive=n)),
    "handler_timeout ": lambda n: entered(aiovblk.mounted(device(), handler_timeout=n)),
    "slow_request ": lambda n: entered(aiovblk.mounted(device(), slow_request=n)),
    "timeout ": lambda n: aiovblk.connect("nbd://h", timeout=n),
    "reconnect": lambda n: aiovblk.connect("nbd://h", reconnect=n),
    "delay": lambda n: Retry(device(), delay=n),
    "longest_delay": lambda n: Retry(device(), delay=0, longest_delay=n),
    "delay ": lambda n: Fault(error=5, delay=n),
    "patience": lambda n: HTTPDevice.open("http://h/f", patience=n),
    "patience ": lambda n: from_url("memory://", patience=n),
    "timeout  ": lambda n: check_block_device(device, timeout=n),
}

COUNTS: dict[str, Call] = {
    "workers": lambda n: entered(aiovblk.serve(device, workers=n)),
    "port": lambda n: entered(aiovblk.serve(device(), port=n)),
    "max_connections": lambda n: entered(aiovblk.serve(device(), max_connections=n)),
    "concurrency": lambda n: entered(aiovblk.serve(device(), concurrency=n)),
    "connection_memory": lambda n: entered(aiovblk.serve(device(), connection_memory=n)),
    "memory": lambda n: entered(aiovblk.serve(device(), memory=n)),
    "workers ": lambda n: entered(aiovblk.mounted(device, workers=n)),
    "connections": lambda n: entered(aiovblk.mounted(device(), connections=n)),
    "concurrency ": lambda n: entered(aiovblk.mounted(device(), concurrency=n)),
    "max_sectors_kb": lambda n: aiovblk.RequestQueue(max_sectors_kb=n),
    "read_ahead_kb": lambda n: aiovblk.RequestQueue(read_ahead_kb=n),
    "connections ": lambda n: aiovblk.connect("nbd://h", connections=n),
    "size": MemoryDevice,
    "block_size": lambda n: MemoryDevice(MIB, block_size=n),
    "size ": lambda n: FileDevice.create("file", n),
    "block_size ": lambda n: FileDevice("file", block_size=n),
    "block_size  ": lambda n: HTTPDevice.open("http://h/f", block_size=n),
    "block_size   ": lambda n: BlockSize(device(), n),
    "requests": lambda n: HTTPDevice.open("http://h/f", requests=n),
    "requests ": lambda n: copy(device(), device(), requests=n),
    "requests  ": lambda n: Limits(requests=n),
    "memory ": lambda n: Limits(memory=n),
    "unstored": lambda n: Limits(unstored=n),
    "size  ": lambda n: create("memory://", size=n),
    "block_size    ": lambda n: create("memory://", size=MIB, block_size=n),
    "chunk_size": lambda n: create("memory://", size=MIB, chunk_size=n),
    "attempts": lambda n: Retry(device(), attempts=n),
    "begin": lambda n: Fault(error=5, begin=n),
    "end": lambda n: Fault(error=5, end=n),
    "skip": lambda n: Fault(error=5, skip=n),
    "times": lambda n: Fault(error=5, times=n),
    "size   ": lambda n: Cache(device(), size=n),
    "line_size": lambda n: Cache(device(), size=MIB, line_size=n),
    "read_ahead": lambda n: Cache(device(), size=MIB, read_ahead=n),
    "dirty_limit": lambda n: Cache(device(), size=MIB, dirty_limit=n),
    "offset": lambda n: Partition(device(), n, 4096),
    "size    ": lambda n: Partition(device(), 0, n),
    "size      ": lambda n: Overlay.diff_size(device(), size=n),
    "rounds": lambda n: check_block_device(device, rounds=n),
    "concurrency  ": lambda n: check_block_device(device, concurrency=n),
    "size     ": CrashableDisk,
    "block_size     ": lambda n: CrashableDisk(MIB, n),
}


async def refusal(call: Call, number: object, errors: tuple[type[Exception], ...]) -> str:
    with pytest.raises(errors) as caught:
        result = call(number)
        if isinstance(result, Awaitable):
            await result
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "number"),
    # A lost server may be called for ever.
    [
        (name, number)
        for name in SECONDS
        for number in (NAN, INF, -INF, -1, 1e30)
        if (name, number) != ("reconnect", INF)
    ],
)
async def test_limit_in_seconds_is_refused_by_its_name(name: str, number: float) -> None:
    message = await refusal(SECONDS[name], number, (ValueError,))
    assert message.startswith(f"{name.strip()} must be ")
    assert "positive number of seconds" in message


@pytest.mark.parametrize("number", [NAN, INF, 2.5, -1, -(2**80), "7", True])
@pytest.mark.parametrize("name", COUNTS)
async def test_number_that_cannot_be_is_refused_by_its_name(
    name: str, number: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = await refusal(COUNTS[name], number, (TypeError, ValueError))
    assert message.startswith(f"{name.strip()} must be ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("port", [-1, 65536, 99999])
async def test_port_is_one_of_tcp(port: int) -> None:
    message = await refusal(COUNTS["port"], port, (ValueError,))
    assert message == f"port must be from 0 to 65535, not {port}"


async def test_empty_path_of_a_socket_is_no_random_name() -> None:
    with pytest.raises(ValueError, match="unix is empty: it must be the path of a socket"):
        async with aiovblk.serve(device(), unix=""):
            pass
