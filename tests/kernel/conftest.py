"""A real kernel with 64 NBD devices, and a check after each test that nothing was left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from aiovblk.kernel import attaching, sysfs

from ..conftest import is_second_half
from .programs import ForkServer
from .stacked_devices import stacking_modules as stacking_modules
from .support import fork_servers, stuck_tasks
from .ublk_devices import by_ublk as by_ublk
from .ublk_devices import ublk_driver as ublk_driver


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--attach", choices=["ioctl", "netlink"], default="ioctl")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "core: belongs to what each change must pass; docs/testing.md tells the choice"
    )
    config.addinivalue_line("markers", "ublk: is about devices that are served by ublk")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Deadlines are tests/conftest.py's here, and those of the guest: this plugin's is that of unit
    # tests, for machines that are not emulated.
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


@pytest.hookimpl(tryfirst=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """Run the core on one loop in each guest, as tests are that say `one_loop`."""
    if config.option.markexpr != "core":
        return None
    if is_second_half(config):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.SelectorEventLoop}


@pytest.fixture(autouse=True)
def attach(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How devices are attached by tests that do not say it."""
    how: str = request.config.getoption("--attach")
    monkeypatch.setattr(attaching, "prefers_netlink", lambda: how == "netlink")
    monkeypatch.setenv("ATTACH", how)  # for programs
    return how


@pytest.fixture(scope="session", autouse=True)
def nbd() -> Iterator[None]:
    """Load the driver; without one, or without root, there is nothing to test here.

    What the programs of the tests are forks of is started meanwhile.
    """
    if os.geteuid() != 0:
        pytest.skip("the kernel tests need root: run them with tools/vm", allow_module_level=True)
    subprocess.run(["modprobe", "nbd", "nbds_max=64"], check=False, capture_output=True)
    if not sysfs.indices():
        pytest.skip("this kernel has no NBD driver: run the kernel tests with tools/vm")
    fork_servers.append(ForkServer())
    yield
    fork_servers.pop().end()


def _own_files() -> list[str]:
    links = []
    for entry in os.scandir("/proc/self/fd"):
        try:
            links.append(os.readlink(entry.path))
        except FileNotFoundError:  # the descriptor of this very scan
            continue
    kinds = ("socket:", "/dev/nbd", "/dev/ublk", "anon_inode:[io_uring]", "/run")
    return [link.split(":")[0] for link in links if link.startswith(kinds)]


@pytest.fixture(autouse=True)
async def nothing_remains() -> AsyncIterator[None]:
    """No thread, file descriptor, attached device or hanging process outlives a test."""
    before = sorted(_own_files())
    yield
    gc.collect()
    assert [index for index in sysfs.indices() if not sysfs.is_free(index)] == []
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("aiovblk")]
    assert not names
    assert sorted(_own_files()) == before
    assert not await stuck_tasks()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of zeroes for tests/kernel/devices.py."""
    path = tmp_path / "image"
    with open(path, "wb") as file:
        file.truncate(16 * 1024 * 1024)
    return path
