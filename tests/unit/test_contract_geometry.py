"""Block sizes and sizes that a device may declare, and what is refused in place of a device."""

from __future__ import annotations

from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.contract import PAGE_SIZE, check_geometry


class Readable(BlockDevice):
    blocks = 8

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


@pytest.mark.parametrize("block_size", [512, 1024, 2048, PAGE_SIZE])
def test_powers_of_two_up_to_a_page_are_block_sizes(block_size: int) -> None:
    device = Readable()
    device.block_size = block_size
    check_geometry(device)


@pytest.mark.parametrize("block_size", [-512, 0, 1, 256, 513, 1536, 2 * PAGE_SIZE])
def test_other_block_sizes_are_refused(block_size: int) -> None:
    device = Readable()
    device.block_size = block_size
    with pytest.raises(ValueError, match=f"block_size must be .*, not {block_size}"):
        check_geometry(device)


@pytest.mark.parametrize("blocks", [0, -1])
def test_device_without_blocks_is_refused(blocks: int) -> None:
    device = Readable()
    device.blocks = blocks
    with pytest.raises(ValueError, match=f"blocks must be at least 1, not {blocks}"):
        check_geometry(device)


@pytest.mark.parametrize("name", ["block_size", "blocks"])
@pytest.mark.parametrize("value", [4096.0, "4096", None, True])
def test_number_that_is_no_int_is_refused(name: str, value: object) -> None:
    device = Readable()
    setattr(device, name, value)
    with pytest.raises(TypeError, match=f"{name} must be an int, not"):
        check_geometry(device)


def test_largest_device_is_what_linux_can_address() -> None:
    device = Readable()
    device.block_size = 512
    device.blocks = (2**63 - PAGE_SIZE) // 512
    check_geometry(device)
    device.blocks += 1
    with pytest.raises(ValueError, match="larger than Linux can address"):
        check_geometry(device)


def test_class_in_place_of_an_object_is_refused_with_a_hint() -> None:
    wrong: Any = Readable
    with pytest.raises(TypeError, match="make an instance of it"):
        check_geometry(wrong)


def test_object_of_another_class_is_refused() -> None:
    wrong: Any = object()
    with pytest.raises(TypeError, match=r"expected a BlockDevice, got <object .*>$"):
        check_geometry(wrong)
