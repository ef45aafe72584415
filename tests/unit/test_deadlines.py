"""A test that hangs ends, and says where it hung; see tests/support/deadlines.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

# The names of each are what the report must contain.
INTERRUPTED = """
import asyncio, threading, time, pytest
from tests.support import deadlines

deadlines.END = 60

pytestmark = [pytest.mark.deadline(1), pytest.mark.one_loop]

async def forgotten_answer():
    await asyncio.get_running_loop().create_future()

async def test_waits_for_a_task():
    task = asyncio.create_task(forgotten_answer())
    await asyncio.wait([task])

def test_waits_for_a_thread():
    def forgotten_event():
        threading.Event().wait()
    thread = threading.Thread(target=forgotten_event, daemon=True)
    thread.start()
    thread.join()

async def test_blocks_the_loop():
    time.sleep(1000)

@pytest.fixture
async def hanging_fixture():
    await forgotten_answer()

async def test_never_begins(hanging_fixture):
    pass

@pytest.fixture
def hanging_end():
    yield
    time.sleep(1000)

def test_never_ends(hanging_end):
    pass

async def test_is_well():
    pass
"""

STEADY = """
import asyncio, pytest
from tests.support import deadlines

deadlines.END = 60

async def never_done():
    while True:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            pass

@pytest.mark.deadline(1)
@pytest.mark.one_loop
async def test_leaves_a_task_that_does_not_end():
    asyncio.current_task().steady = asyncio.create_task(never_done())
    await asyncio.sleep(0)
"""

DEAF = """
import pytest, signal

@pytest.mark.deadline(1)
def test_takes_no_signal():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    while True:
        signal.pause()
"""

UNJOINED = """
import threading
from tests.support import deadlines

deadlines.END_TIMEOUT = 1

def never_returns():
    threading.Event().wait()

def test_leaves_a_thread():
    threading.Thread(target=never_returns).start()
"""


def run(folder: Path, tests: str, *options: str) -> tuple[int, str]:
    file = folder / "test_planted.py"
    file.write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), *options, str(file)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.deadline(120)
def test_hanging_tests_fail_each_and_tell_where(tmp_path: Path) -> None:
    status, output = run(tmp_path, INTERRUPTED, "-n", "1")
    assert status == 1, output
    # A busy machine may take more than this deadline for others, too.
    for name in ("waits_for_a_task", "waits_for_a_thread", "blocks_the_loop", "never_begins"):
        assert re.search(rf"^(FAILED|ERROR) \S*::test_{name} ", output, re.MULTILINE), output
    assert re.search(r"^ERROR \S*::test_never_ends ", output, re.MULTILINE), output
    for name in ("forgotten_answer", "forgotten_event", "time.sleep(1000)", "hanging_fixture"):
        assert name in output
    assert "what hangs" in output


@pytest.mark.deadline(120)
def test_loop_whose_end_hangs_is_reported(tmp_path: Path) -> None:
    status, output = run(tmp_path, STEADY)
    assert status == 1, output
    assert "1 error in" in output
    assert "never_done" in output


@pytest.mark.deadline(120)
def test_test_that_cannot_be_interrupted_ends_the_run(tmp_path: Path) -> None:
    status, output = run(tmp_path, DEAF)
    assert status == 1, output
    assert "test_takes_no_signal" in output


@pytest.mark.deadline(120)
def test_thread_that_is_never_joined_ends_the_run(tmp_path: Path) -> None:
    status, output = run(tmp_path, UNJOINED)
    assert status == 1, output
    assert "1 passed" in output
    assert "never_returns" in output
