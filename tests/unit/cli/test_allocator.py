"""Memory that is freed and needed again is not fetched from the kernel again."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from aiovblk.cli import allocator
from aiovblk.cli.allocator import MAX_HEAP_BLOCK, MAX_KEPT, keep_freed_memory
from aiovblk.libc import Functions

# The pages of so many blocks in flight at once, again and again, as reads of 256 KiB have them.
COUNT_FAULTS = """
import resource
from aiovblk.cli.allocator import keep_freed_memory

def batch():
    blocks = [b"x" * 262_144 for _ in range(64)]

keep_freed_memory()
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


class Malloc:
    """Stands for the C library, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def mallopt(self, option: int, value: int) -> int:
        self.told.append((option, value))
        return 1


@pytest.fixture
def malloc(monkeypatch: pytest.MonkeyPatch) -> Malloc:
    made = Malloc()
    monkeypatch.setattr(allocator, "_libc", made)
    return made


def test_thresholds_are_raised_here_and_for_processes_that_are_started(malloc: Malloc) -> None:
    environ = {"MALLOC_ARENA_MAX": "2"}
    keep_freed_memory(environ)
    assert malloc.told == [(-3, MAX_HEAP_BLOCK), (-1, MAX_KEPT)]
    assert environ == {
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": str(MAX_HEAP_BLOCK),
        "MALLOC_TRIM_THRESHOLD_": str(MAX_KEPT),
    }


@pytest.mark.parametrize(
    "environ",
    [
        {"MALLOC_TRIM_THRESHOLD_": "0"},
        {"MALLOC_MMAP_THRESHOLD_": "65536"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"},
    ],
)
def test_what_the_user_has_set_stays(malloc: Malloc, environ: dict[str, str]) -> None:
    before = dict(environ)
    keep_freed_memory(environ)
    assert (malloc.told, environ) == ([], before)


def test_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_libc", object())
    environ: dict[str, str] = {}
    keep_freed_memory(environ)
    assert environ == {}


def test_freed_blocks_are_used_again_without_page_faults() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("the C library has no mallopt")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environ.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    # One batch alone has 4,096 pages.
    assert int(done.stdout) < 2_000


def test_python_without_ctypes_serves_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)  # so that importing it raises ImportError
    monkeypatch.setattr(allocator, "_libc", Functions(mallopt=["int", "int"]))
    environ: dict[str, str] = {}
    keep_freed_memory(environ)
    assert environ == {}
