"""Layers by ``--layer``: what is parsed, what is put on a device, and in which order."""

from __future__ import annotations

import errno
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from aiovblk import BlockDevice
from aiovblk.cli import main, make_parser
from aiovblk.cli.contents import Contents
from aiovblk.cli.errors import SpecError, UsageError
from aiovblk.cli.layerkinds import KINDS
from aiovblk.cli.layers import Layers, LayerSpec, layers_help, open_stack, stack_for_worker
from aiovblk.storage import (
    BlockSize,
    Cache,
    Faults,
    FileDevice,
    Layer,
    MemoryDevice,
    Mirror,
    Overlay,
    Partition,
    Rate,
    RateLimited,
    ReadOnly,
    Retry,
)

pytestmark = pytest.mark.one_loop  # of no account here

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def kinds(device: BlockDevice) -> list[type[BlockDevice]]:
    """The classes of a stack, the device below all layers first."""
    below = kinds(device.inner) if isinstance(device, Layer) else []
    return [*below, type(device)]


# Parsing


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("retry", {}),
        ("retry:attempts=3,delay=0", {"attempts": 3, "delay": 0.0}),
        ("retry:longest-delay=2.5", {"longest-delay": 2.5}),
        ("limit:rate=100M", {"rate": 100 * MIB}),
        ("limit:write-requests=5,burst=0", {"write-requests": 5, "burst": 0.0}),
        ("cache:size=1M,path=a,,b", {"size": MIB, "path": "a,b"}),
        ("cache:size=1M,path=a=b", {"size": MIB, "path": "a=b"}),
        ("partition:offset=0,size=1M", {"offset": 0, "size": MIB}),
        ("faults:delay=1,begin=0,end=4K", {"delay": 1.0, "begin": 0, "end": 4096}),
        ("mirror:with=file:x?a=1,in-sync=yes", {"with": "file:x?a=1", "in-sync": True}),
        ("faults:error=eio,rate=0.5,late=no", {"error": errno.EIO, "rate": 0.5, "late": False}),
    ],
)  # fmt: skip
def test_layer_is_parsed(text: str, settings: dict[str, object]) -> None:
    parsed = LayerSpec.parse(text)
    assert (parsed.name, parsed.settings) == (text.partition(":")[0], settings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no layer ''; there are: retry, limit, cache"),
        ("rate", "there is no layer 'rate'"),
        ("read-only:x=1", "read-only has no option 'x'; there are: none"),
        ("limit:speed=1", "limit has no option 'speed'; there are: rate, "),
        ("limit:rate", "option rate of limit needs a value"),
        ("limit:rate=1,rate=2", "option rate of limit is given twice"),
        ("limit:rate=fast", "option rate of limit 'fast' is no size"),
        ("limit:rate=0", "option rate of limit must be more than 0 bytes"),
        ("limit:burst=1", "limit needs rate= or read-rate= or "),
        ("limit:requests=-1", "option requests of limit must be a whole number"),
        ("limit:rate=1,", "limit has no option ''"),
        ("cache", "cache needs size="),
        ("cache:size=1M,policy=lazy", "option policy of cache must be one of"),
        ("overlay:path=", "option path of overlay must not be empty"),
        ("block-size:size=3", "option size of block-size must be a power of two"),
        ("retry:delay=-1", "option delay of retry must be 0 or a positive number"),
        ("faults", "faults needs error= or delay="),
        ("faults:error=EWHAT", "must be the name of an error, such as EIO, not 'EWHAT'"),
        ("faults:error=EIO,rate=2", "must be a number from 0 to 1, not '2'"),
        ("faults:error=EIO,late=maybe", "must be one of yes, no, not 'maybe'"),
        ("faults:error=EIO,command=erase", "must be one of read, write"),
    ],
)
def test_layer_that_cannot_be_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        LayerSpec.parse(text)
    assert reason in str(caught.value)


def test_wrong_layer_is_an_error_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "memory:1M", "--layer", "limit:rate=fast"])
    assert caught.value.code == 2
    assert "argument --layer: option rate of limit 'fast' is no size" in capsys.readouterr().err


def test_old_options_follow_the_layers_the_cache_first() -> None:
    words = ["--overlay", "o", "--cache", "1M", "--layer", "retry", "--layer", "read-only"]
    layers = Layers.of(make_parser().parse_args(["serve", "memory:1M", *words]))
    assert [each.name for each in layers.layers] == ["retry", "read-only", "cache", "overlay"]


def test_help_names_every_layer_and_option() -> None:
    for name, kind in KINDS.items():
        for word in (name, *kind.options):
            assert word in layers_help()


# What is put on a device


STACKS = {
    "retry": Retry,
    "limit:rate=1M,read-requests=5,burst=2": RateLimited,
    "cache:size=1M": Cache,
    "read-only": ReadOnly,
    "block-size:size=512": BlockSize,
    "partition:offset=4K,size=8K": Partition,
    "partition:size=8K": Partition,
    "faults:error=EIO,command=flush,seed=3": Faults,
}


@pytest.mark.parametrize("text", STACKS)
async def test_layer_is_put_on_a_device(text: str) -> None:
    async with open_stack("memory:1M", Layers.parse(text)) as device:
        assert kinds(device) == [MemoryDevice, STACKS[text]]
        await device.unmount()


async def test_layers_are_stacked_in_their_order() -> None:
    layers = Layers.parse("faults:delay=0.001", "retry", "limit:requests=1000", "overlay:path=o")
    async with open_stack("memory:1M", layers) as device:
        assert kinds(device) == [MemoryDevice, Faults, Retry, RateLimited, Overlay]
        await device.unmount()


async def test_limit_has_its_rates() -> None:
    layers = Layers.parse("limit:rate=1M,read-requests=5,write-rate=2K,burst=3")
    async with open_stack("memory:1M", layers) as device:
        assert isinstance(device, RateLimited)
        assert device.limit == Rate(MIB, None, 3)
        assert device.read_limit == Rate(None, 5, 3)
        assert device.write_limit == Rate(2048, None, 3)
        await device.unmount()


async def test_fault_is_injected_and_retried() -> None:
    layers = Layers.parse("faults:error=EIO,command=read,times=2", "retry:delay=0")
    async with open_stack("memory:1M", layers) as device:
        assert bytes(await device.read(0, 4096)) == bytes(4096)
        await device.unmount()


async def test_mirror_makes_the_other_equal_first() -> None:
    Path("a").write_bytes(b"a" * MIB)
    Path("b").write_bytes(b"b" * MIB)
    async with open_stack("file:a", Layers.parse("mirror:with=file:b")) as device:
        assert isinstance(device, Mirror)
        assert len(device.in_sync) == 2
        await device.write(0, memoryview(b"c" * 4096))
        await device.unmount()
    assert Path("b").read_bytes() == Path("a").read_bytes() == b"c" * 4096 + b"a" * (MIB - 4096)


async def test_mirror_whose_members_are_equal_is_not_copied() -> None:
    for name in "ab":
        Path(name).write_bytes(name.encode() * MIB)
    async with open_stack("file:a", Layers.parse("mirror:with=file:b,in-sync=yes")) as device:
        await device.unmount()
    assert Path("b").read_bytes() == b"b" * MIB


async def test_mirror_with_another_size_is_refused_and_nothing_stays_open() -> None:
    Path("a").write_bytes(bytes(MIB))
    Path("b").write_bytes(bytes(2 * MIB))
    with pytest.raises(ValueError, match="size"):
        async with open_stack("file:a", Layers.parse("mirror:with=file:b")):
            pass
    for name in "ab":
        await FileDevice(name).unmount()  # it is not locked


async def test_layer_that_never_writes_below_opens_the_device_for_reading() -> None:
    Path("disk").write_bytes(bytes(MIB))
    for text in ("read-only", "overlay:path=o"):
        async with open_stack("file:disk", Layers.parse(text)) as device:
            assert isinstance(device, Layer)
            assert device.inner.read_only
            await device.unmount()


async def test_failing_layer_leaves_nothing_open() -> None:
    Path("disk").write_bytes(bytes(MIB))
    with pytest.raises(ValueError, match="no part of a device"):
        async with open_stack("file:disk", Layers.parse("retry", "partition:offset=2M,size=1M")):
            pass
    await FileDevice("disk").unmount()


async def test_worker_has_its_own_layers() -> None:
    Path("disk").write_bytes(bytes(MIB))
    device = await stack_for_worker("file:disk", Layers.parse("retry", "read-only"))
    assert kinds(device) == [FileDevice, Retry, ReadOnly]
    await device.unmount()


@pytest.mark.parametrize("text", ["cache:size=1M,path=c", "overlay:path=o", "mirror:with=file:b"])
def test_file_of_a_layer_is_for_one_device(text: str) -> None:
    with pytest.raises(UsageError, match="names one file or device"):
        Layers.parse(text).check_shareable()
    Layers.parse("retry", "cache:size=1M").check_shareable()


# What is in files


async def test_cache_of_a_partition_is_not_used_for_another_one() -> None:
    Path("disk").write_bytes(b"a" * MIB + b"b" * MIB)
    for offset, letter in ((0, b"a"), (MIB, b"b"), (0, b"a")):
        where = f"offset={offset},size=1M" if offset else "size=1M"
        layers = Layers.parse(f"partition:{where}", "cache:size=4M,path=cache")
        async with open_stack("file:disk", layers) as device:
            assert bytes(await device.read(0, 4096)) == letter * 4096
            await device.unmount()


async def test_overlay_of_a_partition_is_not_used_over_another_one() -> None:
    Path("disk").write_bytes(bytes(2 * MIB))
    for size, fails in ((MIB, False), (MIB, False), (2 * MIB, True)):
        layers = Layers.parse(f"partition:offset=4K,size={size - 8192}", "overlay:path=o")
        try:
            async with open_stack("file:disk", layers) as device:
                await device.write(0, memoryview(b"x" * 4096))
                await device.unmount()
        except (ValueError, SpecError):
            assert fails
        else:
            assert not fails


def test_contents_behind_a_layer_are_others() -> None:
    plain = Contents(lambda: "disk", "base")
    first, second = (
        plain.behind(LayerSpec.parse(f"partition:size={size}").identity) for size in "12"
    )
    assert len({plain.identity(), first.identity(), second.identity()}) == 3
    assert len({plain.base, first.base, second.base}) == 3
    assert Contents(lambda: "disk", None).behind("x").base is None


def test_same_file_by_another_path_is_the_same_layer() -> None:
    assert (
        LayerSpec.parse("overlay:path=o").identity == LayerSpec.parse("overlay:path=./o").identity
    )


# By commands


def test_copy_has_layers_on_either_side(capsys: pytest.CaptureFixture[str]) -> None:
    Path("disk").write_bytes(b"a" * MIB + b"b" * MIB)
    words = ["--layer", "partition:offset=1M", "--target-layer", "retry", "--no-progress"]
    assert main(["copy", "file:disk", "file:part", *words]) == 0
    assert Path("part").read_bytes() == b"b" * MIB
    failing = ["--target-layer", "faults:error=ENOSPC,command=write"]
    assert main(["copy", "file:disk", "file:other", *failing, "--no-progress"]) == 1
    assert "No space left on device (on purpose)" in capsys.readouterr().err
