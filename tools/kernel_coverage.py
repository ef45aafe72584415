#!/usr/bin/env python3
"""Report which functions of the kernel's rooms all kernel tests reach and the core does not.

    tools/kernel_coverage.py              run tests/kernel in two guests at once, and report
    tools/kernel_coverage.py --report     report on the last run again, for instance on another core
    tools/kernel_coverage.py --by-test    and which functions each test reaches alone

Functions are what is counted, of `aiovblk/kernel`, `aiovblk/ublk` and `aiovblk/mounting` with the
rooms in it: in the process of the tests and in all that it starts, forks and workers and both
watchdogs included, with sys.monitoring (so Python 3.12 or later, and next to no time). A function
is noted once per process and test, so one run of everything shows what any choice of tests reaches.
What is noted is in build/kernel-coverage.

The guests are Linux 6.1, where the tests attach by ioctl, and 6.12, by netlink; only the second has
ublk. They run the newest Python of this system, as `tools/test kernel` does.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from suite import environments
from suite.environments import ROOT
from suite.stages import WITHOUT_PLUGINS, compiled

HOME = ROOT / "build" / "kernel-coverage"
NOTES = "/tmp/kernel-coverage"
"""Where all processes of a guest note what they reach."""
ROOMS = ("aiovblk/kernel", "aiovblk/ublk", "aiovblk/mounting")
GUESTS = {"6.1": "ioctl", "6.12": "netlink"}

# sitecustomize, which each interpreter of the guest imports when it starts.
TRACER = """
import os, sys, types
ROOT, HOME, NOTES = {root!r}, {home!r}, {notes!r}
ROOMS = tuple(os.path.join(ROOT, each) + "/" for each in {rooms!r})
monitoring = sys.monitoring
notes = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def started(code, _):
    if code.co_filename.startswith(ROOMS):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
        name = code.co_qualname.replace(".<locals>", "").partition(".<")[0]
        where = os.path.relpath(code.co_filename, ROOT)
        os.write(notes, f"{{test}}\\t{{where}}\\t{{name}}\\n".encode())
        if name == "_start" and where.endswith("kernel/watchdog.py"):
            # A watchdog is started without site, and so without this module.
            bare = [sys.executable, "-IS", os.path.join(HOME, "traced.py")]
            sys.modules["aiovblk.kernel.watchdog"].interpreter = types.SimpleNamespace(
                bare_command=lambda *words: [*bare, *words]
            )
    return monitoring.DISABLE

monitoring.use_tool_id(4, "functions")
monitoring.register_callback(4, monitoring.events.PY_START, started)
monitoring.set_events(4, monitoring.events.PY_START)
os.register_at_fork(after_in_child=monitoring.restart_events)
"""

PLUGIN = """
import os, shutil
from sitecustomize import HOME, NOTES, monitoring

def pytest_runtest_logstart():
    monitoring.restart_events()

def pytest_runtest_logfinish():
    # After each test, for what a guest has noted that hangs or is ended.
    with open(os.path.join(HOME, "notes." + os.environ["AIOVBLK_VM_KERNEL"]), "ab") as file:
        with open(NOTES, "rb") as new:
            new.seek(file.tell())
            shutil.copyfileobj(new, file)
"""

# Runs the program of a watchdog, its first argument.
TRACED = """
import runpy, sys
sys.path.insert(0, {home!r})
import sitecustomize
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

Function = tuple[str, str]
"""File and qualified name."""


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", action="store_true", help="on the last run")
    parser.add_argument("--by-test", action="store_true", help="what each test reaches alone")
    parser.add_argument("pytest", nargs="*", help="options and tests, by default tests/kernel")
    options = parser.parse_args()
    os.chdir(ROOT)
    if not options.report:
        run(options.pytest or ["tests/kernel"])
    report(notes(), core(), by_test=options.by_test)
    return 0


def run(tests: list[str]) -> None:
    """Run the tests in both guests, whose output is left in files."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    write_tracer(HOME, NOTES)
    (HOME / "noting.py").write_text(PLUGIN)
    version = newest_python()
    guests = {}
    for kernel, how in GUESTS.items():
        command = ["tools/vm", "run", "--kernel", kernel, "--smp", "2", "--timeout", "9000"]
        command += ["--rw", str(HOME), "--", "env", f"PYTHONPATH={HOME}"]
        command += [*environments.python(version), "-W", "error", "-m", "pytest", "-v"]
        command += [*WITHOUT_PLUGINS, "-p", "noting", "--attach", how, *tests]
        with (HOME / f"log.{kernel}").open("wb") as log:
            command = compiled(version, "tests/kernel", command)
            guests[kernel] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    for kernel, guest in guests.items():
        if guest.wait():
            print(f"Linux {kernel}: status {guest.returncode}, see {HOME}/log.{kernel}")


def newest_python() -> str:
    """Return the version of the guests' Python: the newest that runs without a root of its own."""
    return environments.on_this_system()[-1]


def write_tracer(home: Path, notes: str) -> None:
    """Write what traces an interpreter that has `home` in its path, and the watchdogs it starts.

    Args:
        home: a directory, for the modules.
        notes: the file that gets a line for each function, of test, file and qualified name.

    """
    names = {"root": str(ROOT), "home": str(home), "notes": notes, "rooms": ROOMS}
    (home / "sitecustomize.py").write_text(TRACER.format(**names))
    (home / "traced.py").write_text(TRACED.format(**names))


def notes() -> dict[str, set[Function]]:
    """Return the functions that each test has reached, on any kernel."""
    reached: dict[str, set[Function]] = defaultdict(set)
    for file in sorted(HOME.glob("notes.*")):
        for line in file.read_text().splitlines():
            test, path, name = line.split("\t")
            if test and name != "<module>":
                reached[test].add((path, name))
    return reached or sys.exit("nothing is noted; run it without --report")


def core() -> set[str]:
    """Return the tests that are marked as core."""
    command = [*environments.python(newest_python()), "-m", "pytest", *WITHOUT_PLUGINS]
    command += ["tests/kernel", "-m", "core", "--collect-only", "-q"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    return {line for line in listed.splitlines() if "::" in line}


def is_of(test: str, core: set[str]) -> bool:
    """Return whether a test belongs to the core, whose tests run on one loop and do not name it."""
    return (
        test in core or re.sub(r"\[(asyncio|uvloop)\]$|(?<=\[)(asyncio|uvloop)-", "", test) in core
    )


def functions() -> Iterator[Function]:
    """Yield all functions of the rooms, as code objects call themselves."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            file = str(path.relative_to(ROOT))
            yield from ((file, name) for name in named(ast.parse(path.read_text()), ""))


def named(node: ast.AST, before: str) -> Iterator[str]:
    """Yield the qualified names of the functions in a tree; what is nested has its outer's."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{before}{child.name}"
            if not isinstance(child, ast.ClassDef) and not is_abstract(child):
                yield name
            yield from named(child, f"{name}.")
        else:
            yield from named(child, before)


def is_abstract(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a function only says what others do: it has words, and nothing to run."""
    return all(
        isinstance(each, ast.Raise)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in function.body
    )


def report(reached: dict[str, set[Function]], core: set[str], *, by_test: bool) -> None:
    """Print what the core and everything reach."""
    every = set(functions())
    whole = set().union(*reached.values()) & every
    kept = set().union(*(reached[test] for test in reached if is_of(test, core))) & every
    print(f"{len(every)} functions; all tests reach {len(whole)}, the core {len(kept)}")
    print("\nReached, but not by the core:")
    for path, name in sorted(whole - kept):
        tests = [test for test in reached if (path, name) in reached[test]]
        print(f"  {path} {name}: {tests[0].partition('::')[2]} and {len(tests) - 1} more")
    print("\nReached by no test in a guest (tests/unit may have them):")
    for path, name in sorted(every - whole):
        print(f"  {path} {name}")
    if by_test:
        print("\nReached by one test alone:")
        for test in sorted(reached):
            others = set().union(*(reached[each] for each in reached if each != test))
            for path, name in sorted((reached[test] & every) - others):
                print(f"  {test.partition('::')[2]}: {path} {name}")


if __name__ == "__main__":
    sys.exit(main())
