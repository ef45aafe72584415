"""What all tests have: both event loops, a deadline each, and a long form where they take long."""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import zlib
from collections.abc import Callable, Generator, Mapping

import pytest
import uvloop

from .support import deadlines, sizes

gc.disable()  # until all is collected: of what there is then, nothing is garbage


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        help="with the tests that are marked `long`, and others in their long form",
    )
    parser.addoption(
        "--loops",
        choices=["both", "either"],
        default="both",
        help="run asynchronous tests on asyncio and uvloop, or each on one of them: in the second "
        "half on the other one than in the first (default %(default)s)",
    )
    parser.addoption(
        "--slow",
        choices=["all", "half"],
        default="all",
        help="which of the tests that are marked `slow` to run (default %(default)s)",
    )
    parser.addoption(
        "--half",
        choices=["first", "second"],
        default="second" if sys.version_info >= (3, 13) else "first",
        help="which half of a run on two Pythons this is, for what runs only once in both "
        "(default on this Python: %(default)s)",
    )


def is_second_half(config: pytest.Config) -> bool:
    """Whether this is the second half of a run that tests on two Pythons."""
    return bool(config.getoption("--half") == "second")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "newest_python: need not run on the others too, and takes long"
    )
    config.addinivalue_line("markers", "one_loop: run on one loop per Python, for what takes long")
    config.addinivalue_line("markers", "either_loop: on one loop, unless --long is given")
    config.addinivalue_line("markers", "slow: with --slow half, in one of both halves")
    config.addinivalue_line("markers", "long: only with --long")
    sizes.is_long = bool(config.getoption("--long"))
    deadlines.configure(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    # A helper of pytest-xdist waits for the others here, and is ended by pytest-xdist.
    if not hasattr(config, "workerinput"):
        deadlines.unconfigure()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.SelectorEventLoop,
        "uvloop": uvloop.new_event_loop,
    }
    if item.get_closest_marker("one_loop"):
        # Not the whole matrix, but both loops in it.
        name = sorted(loops)[is_second_half(config)]
        return {name: loops[name]}
    is_spared = item.get_closest_marker("either_loop") and not sizes.is_long
    if is_spared or config.getoption("--loops") == "either":
        # Half of the tests on each, and over both halves of the run each on both.
        name = sorted(loops)[(zlib.crc32(item.name.encode()) + is_second_half(config)) % 2]
        return {name: loops[name]}
    return loops


def pytest_itemcollected(item: pytest.Item) -> None:
    deadlines.set_deadline(item)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        (left_out if _is_left_out(config, item) else wanted).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = wanted


def _is_left_out(config: pytest.Config, item: pytest.Item) -> bool:
    if item.get_closest_marker("slow") and config.getoption("--slow") == "half":
        # The loop is not the same in the other half.
        name = re.sub("asyncio|uvloop", "", item.nodeid)
        if (zlib.crc32(name.encode()) + is_second_half(config)) % 2:
            return True
    return bool(item.get_closest_marker("long")) and not sizes.is_long


def pytest_collection_finish(session: pytest.Session) -> None:
    # A test that collects its garbage, as each in a guest does, need not look through all tests:
    # an emulated machine takes seconds for it.
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    with deadlines.guarded(item):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with deadlines.guarded(item):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    with deadlines.guarded(item):
        return (yield)
