"""Subprocess interpreters: none imports code from the current directory."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiovblk
from aiovblk import interpreter

from ..support.syntax_trees import syntax_tree

pytestmark = pytest.mark.slow

PACKAGE = Path(aiovblk.__file__).parent


def uses_of_the_interpreter(package: Path) -> Iterator[tuple[str, str]]:
    """Return each place that uses ``sys.executable``: the file, and the function around it."""
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(syntax_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Attribute) and inner.attr == "executable":
                        name = getattr(node, "name", "lambda")
                        yield str(path.relative_to(package)), name


def test_interpreters_are_started_in_one_place_only() -> None:
    assert set(uses_of_the_interpreter(PACKAGE)) == {
        ("interpreter.py", "command"),
        ("interpreter.py", "bare_command"),
    }


def test_nothing_starts_an_interpreter_by_its_name() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(syntax_tree(path)):
            if isinstance(node, ast.List) and node.elts:
                first = node.elts[0]
                assert not (
                    isinstance(first, ast.Constant) and str(first.value).startswith("python")
                ), path


def test_every_command_rules_the_current_directory_out() -> None:
    assert interpreter.command("pass")[1] == "-P"
    assert "I" in interpreter.bare_command("-c", "pass")[1]


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A directory with modules that an attacker would like to have run."""
    directory = tmp_path / "trap"
    directory.mkdir()
    for name in ("json", "asyncio", "pickle", "socket", "uvloop", "aiovblk", "os", "signal"):
        code = f"open({str(tmp_path / 'sprung')!r}, 'a').write({name!r}); raise SystemExit(9)\n"
        (directory / f"{name}.py").write_text(code)
    return directory


def run(code: str, directory: Path, *arguments: str, **environment: str) -> str:
    """Run code in a directory, as an installed program is; return its output."""
    program = directory.parent / "program.py"
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SERVE = """
import asyncio, sys
from functools import partial
import aiovblk
from aiovblk.cli.spec import device_for_worker

async def main():
    make = partial(device_for_worker, sys.argv[1])
    async with aiovblk.serve({"": make}, unix=sys.argv[2], workers=1) as server:
        async with aiovblk.connect(server.uris[0]) as remote:
            print(len(await remote.read(0, 512)))

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_worker_takes_no_code_from_the_current_directory(trap: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    assert run(SERVE, trap, f"file:{image}", str(tmp_path / "socket")) == "512\n"
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("safe", ["", "1"])
def test_worker_finds_the_users_module_where_the_parent_does(tmp_path: Path, safe: str) -> None:
    """In the current directory, which a SPEC of that form stands for."""
    directory = tmp_path / "work"
    directory.mkdir()
    (directory / "mydisk.py").write_text(
        "from aiovblk.storage import MemoryDevice\n"
        "def make(): return MemoryDevice(1 << 20, block_size=512)\n"
    )
    socket = str(tmp_path / "socket")
    assert run(SERVE, directory, "mydisk:make", socket, PYTHONSAFEPATH=safe) == "512\n"


UPGRADE = """
import os, subprocess, sys
from aiovblk import interpreter
from aiovblk.cli import reparent
sys.path.insert(0, "")  # as a SPEC does
print(subprocess.run(interpreter.command(reparent._COMMAND, "--version"), text=True,
    stdout=subprocess.PIPE, check=True).stdout.strip())
"""


def test_upgrade_takes_no_code_from_the_current_directory(trap: Path, tmp_path: Path) -> None:
    assert run(UPGRADE, trap) == f"aiovblk {aiovblk.__version__}\n"
    assert not (tmp_path / "sprung").exists()


UNMOUNT = """
from aiovblk.kernel import unmounting
try:
    unmounting.run_in_child(unmounting.__name__, "/dev/null", timeout=60)
except OSError as exc:
    print("refused")
"""


def test_unmounting_process_takes_no_code_from_the_current_directory(
    trap: Path, tmp_path: Path
) -> None:
    run(UNMOUNT, trap)
    assert not (tmp_path / "sprung").exists()


ISOLATED = """
import subprocess, sys
from aiovblk import interpreter
flags = "print(sys.flags.isolated, sys.flags.ignore_environment, sys.flags.no_user_site)"
print(subprocess.run(interpreter.command(flags), text=True, stdout=subprocess.PIPE).stdout)
"""


@pytest.mark.parametrize(("flag", "flags"), [("-I", "1 1 1"), ("-E", "0 1 0"), ("-s", "0 0 1")])
def test_what_is_ruled_out_for_this_interpreter_is_for_the_next(flag: str, flags: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n{ISOLATED}"
    done = subprocess.run(
        [sys.executable, flag, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == flags.split(), done.stderr
