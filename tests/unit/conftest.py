from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.timers import timers

from ..support.child_processes import no_child_is_left
from ..support.fake_kernel import kernel
from ..support.fake_ublk import ublk_kernel
from ..support.kernel_tree import tree
from ..support.noting_disk import disk
from ..support.sizes import by_size
from ..support.ublk_disk import ublk_disk

__all__ = ["disk", "kernel", "no_child_is_left", "timers", "tree", "ublk_disk", "ublk_kernel"]

# The same examples each time: chance has its place in tools/fuzz.
settings.register_profile(
    "suite", derandomize=True, database=None, deadline=None, max_examples=by_size(80, 250)
)
settings.load_profile("suite")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a server may have its Unix socket."""
    return tmp_path / "socket"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The file of a disk of 1 MiB of zeroes."""
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    return path
