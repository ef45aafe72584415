"""tools/kernel_coverage.py: which functions there are, and that those of watchdogs are noted."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest
from kernel_coverage import functions, is_of, named, newest_python, write_tracer
from suite import environments

from .conftest import ROOT

SOURCE = '''
def alone():
    """Is a function."""
    def nested(): pass
    return [each for each in nested()]

class Outer:
    async def method(self):
        async with self: return lambda: 0

    class Inner:
        def method(self): return 0

    if alone():
        def conditional(self): return 0

class Interface:
    def said(self) -> int:
        """Say what others do."""

    def demanded(self) -> int:
        """Say what others are to do."""
        raise NotImplementedError

    def short(self) -> int: ...
'''


def test_functions_have_the_names_of_their_code_but_for_locals() -> None:
    assert list(named(ast.parse(SOURCE), "")) == [
        "alone",
        "alone.nested",
        "Outer.method",
        "Outer.Inner.method",
        "Outer.conditional",
    ]


def test_functions_are_those_of_the_rooms_and_the_rooms_in_them() -> None:
    found = list(functions())
    assert len(set(found)) == len(found)
    files = {path for path, _ in found}
    for file in (
        "kernel/watchdog.py",
        "kernel/watchdog_process.py",
        "ublk/queue.py",
        "mounting/handle.py",
        "mounting/handover/release.py",
        "mounting/recovery/reconnect.py",
        "mounting/ublk/serving.py",
        "mounting/workers/backend.py",
    ):
        assert f"aiovblk/{file}" in files
    assert ("aiovblk/kernel/watchdog.py", "Watchdog.watch_pending") in found


WATCHING = """
from aiovblk.{room}.watchdog import watchdog
watchdog.watch_pending(1)
process = watchdog._process
watchdog.release_to_successor(1)
print(process.wait(), end="")
"""


@pytest.fixture
def python() -> str:
    """Return the interpreter that the guests have, newer than that of this test perhaps."""
    version = newest_python()
    if tuple(map(int, version.split("."))) < (3, 12):
        pytest.skip("sys.monitoring is new in Python 3.12")
    return environments.interpreter(version)


@pytest.mark.parametrize("room", ["kernel", "ublk"])
def test_functions_of_a_watchdog_are_noted(python: str, room: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    write_tracer(tmp_path, str(notes))
    test = "tests/kernel/a.py::b"
    done = subprocess.run(
        [python, "-c", WATCHING.format(room=room)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTEST_CURRENT_TEST": f"{test} (call)"},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("0", "")
    noted = {tuple(line.split("\t")) for line in notes.read_text().splitlines()}
    assert (test, "aiovblk/kernel/watchdog.py", "Watchdog.watch_pending") in noted
    # The program itself, and the part that both have.
    assert (test, f"aiovblk/{room}/watchdog_process.py", "<module>") in noted
    assert (test, "aiovblk/kernel/watchdog_process.py", "handle_line") in noted


@pytest.mark.parametrize(
    ("test", "belongs"),
    [
        ("t.py::test_one", True),
        ("t.py::test_one[uvloop]", True),
        ("t.py::test_two[asyncio-4096]", True),
        ("t.py::test_two[asyncio-512]", False),
        ("t.py::test_three[uvloop]", True),
        ("t.py::test_three[asyncio]", False),  # a parameter of its own, of which the core has one
    ],
)
def test_test_of_the_core_is_known_on_each_loop(test: str, belongs: bool) -> None:
    core = {"t.py::test_one", "t.py::test_two[4096]", "t.py::test_three[uvloop]"}
    assert is_of(test, core) is belongs
