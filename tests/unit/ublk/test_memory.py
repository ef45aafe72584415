"""Memory that is shared with the kernel: views, the end, forked children."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from aiovblk.ublk import memory
from aiovblk.ublk.memory import PAGE, Mapping


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("shared")
    os.ftruncate(fd, 2 * PAGE)
    yield fd
    os.close(fd)


def is_mapped(address: int) -> bool:
    with open("/proc/self/maps", encoding="ascii") as maps:
        ranges = [line.split()[0].split("-") for line in maps]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


def test_views_show_what_the_file_has_and_write_to_it(file: int) -> None:
    os.pwrite(file, b"\1\2\3\4\5\6\7\10", PAGE)
    mapping = Mapping(file, PAGE, offset=PAGE)
    assert mapping.view(0, 8).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert mapping.view(0, 8, "I")[0] == 0x04030201
    assert mapping.view(4, 8, "I").tolist() == [0x08070605]
    mapping.view(form="Q")[1] = 0x1122334455667788
    assert os.pread(file, 8, PAGE + 8) == bytes.fromhex("8877665544332211")
    assert len(mapping.view()) == PAGE
    mapping.close()


def test_memory_of_no_file_is_zeroes(file: int) -> None:
    mapping = Mapping(None, 3 * PAGE)
    view = mapping.view()
    assert bytes(view) == bytes(3 * PAGE)
    view[5] = 7
    assert mapping.view(5, 6)[0] == 7
    mapping.close()


def test_read_only_memory_has_read_only_views(file: int) -> None:
    mapping = Mapping(file, PAGE, writable=False)
    for view in (mapping.view(), mapping.view(form="Q")):
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1
    mapping.close()


def test_close_releases_all_views_and_unmaps(file: int) -> None:
    mapping = Mapping(file, PAGE)
    views = [mapping.view(), mapping.view(form="Q"), mapping.view(8, 16, "I")]
    address = mapping.address
    assert is_mapped(address)
    mapping.close()
    assert not is_mapped(address)
    for view in views:
        with pytest.raises(ValueError, match="released"):
            view[0]
    with pytest.raises(OSError, match="not mapped any more") as caught:
        mapping.view()
    assert caught.value.errno == errno.EBADF
    mapping.close()


def test_mapping_keeps_no_descriptor(file: int) -> None:
    before = os.listdir("/proc/self/fd")
    mapping = Mapping(file, PAGE)
    assert os.listdir("/proc/self/fd") == before
    mapping.close()


def test_refusal_of_the_kernel_is_raised() -> None:
    with pytest.raises(OSError, match="mmap: Bad file descriptor") as caught:
        Mapping(1 << 20, PAGE)
    assert caught.value.errno == errno.EBADF


def test_memory_that_forked_children_would_get_is_unmapped(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmapped: list[int] = []
    real = memory._libc

    class Refusing:
        mmap = staticmethod(real.mmap)

        def madvise(self, address: int, size: int, advice: int) -> int:
            return int(real.madvise(address + 1, size, advice))  # EINVAL

        def munmap(self, address: int, size: int) -> int:
            unmapped.append(address)
            return int(real.munmap(address, size))

    monkeypatch.setattr(memory, "_libc", Refusing())
    with pytest.raises(OSError, match="madvise: Invalid argument"):
        Mapping(file, PAGE)
    assert len(unmapped) == 1


FORKED = """
import mmap, os
from aiovblk.ublk.memory import PAGE, Mapping, _libc

mapping = Mapping(None, 16 * PAGE)
view = mapping.view()
address = mapping.address

def starts():
    with open("/proc/self/maps") as maps:
        return [int(line.split("-")[0], 16) for line in maps]

assert address in starts() or any(each < address for each in starts())
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    view[0] = 1
    mapping.close()
else:
    # The child gets other memory at the address, which close() must leave alone.
    MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE = 0x100022
    got = _libc.mmap(address, PAGE, 3, MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE, -1, 0)
    if got != address:
        os._exit(2)  # the mapping is there
    mapping.close()
    os._exit(0 if address in starts() else 3)
"""


def test_forked_child_has_none_of_it_and_unmaps_nothing() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True)
