"""What all tests have: both event loops, a deadline each, and a long form where they take long."""

from __future__ import annotations

import asyncio
import re
import sys
import zlib
from collections.abc import Callable, Generator, Mapping

import pytest
import uvloop

from .support import deadlines, sizes

IS_NEWEST = sys.version_info >= (3, 13)
"""Whether what has two halves does the second: of the Pythons of ``make test``, on the newest."""


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
        help="run asynchronous tests on asyncio and uvloop, or each on one of them: half on each, "
        "and on Python 3.13 and later on the other one than before (default %(default)s)",
    )
    parser.addoption(
        "--pythons",
        choices=["each", "either"],
        default="each",
        help="run tests that are marked `slow` on each Python, or half of them: on Python 3.13 and "
        "later the other half than before (default %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "newest_python: need not run on the others too, and takes long"
    )
    config.addinivalue_line("markers", "one_loop: run on one loop per Python, for what takes long")
    config.addinivalue_line("markers", "either_loop: on one loop, unless --long is given")
    config.addinivalue_line("markers", "slow: on one of two Pythons, if --pythons is either")
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
        name = "uvloop" if IS_NEWEST else "asyncio"
        return {name: loops[name]}
    is_spared = item.get_closest_marker("either_loop") and not sizes.is_long
    if is_spared or config.getoption("--loops") == "either":
        # Half of the tests on each, and on the oldest and the newest Python each on both.
        name = sorted(loops)[(zlib.crc32(item.name.encode()) + IS_NEWEST) % 2]
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
    if item.get_closest_marker("slow") and config.getoption("--pythons") == "either":
        # The loop is not the same on the other Python.
        name = re.sub("asyncio|uvloop", "", item.nodeid)
        if (zlib.crc32(name.encode()) + IS_NEWEST) % 2:
            return True
    return bool(item.get_closest_marker("long")) and not sizes.is_long


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
