#!/usr/bin/env python3
"""Plant faults in the package, to see whether the tests notice: tools/mutate.py --help.

    tools/mutate.py plant --seed 15 mount:await kernel:lock ... --out DIR
    tools/mutate.py run DIR/*.diff -- -n 2 tests/unit

``plant`` writes one diff for each ROOM:KIND, at a place that the seed chooses; the same seed
chooses the same places for as long as the source is the same. A place whose change changes nothing
is passed over with ROOM:KIND@1 (the second of its row), @2 and so on. ``run`` gives each diff a
copy of the tree and runs pytest there, the test files that are about the room before others; it
stops at the first test that fails, and fails again when it is run by itself.

The kinds:

    await     a statement that awaits a call is left out
    branch    a condition is the other way round
    lock      a lock is not taken
    deadline  a wait has no end
    error     an error is not raised, or its handler does nothing
    bound     a comparison or a count is off by one
"""

import argparse
import ast
import difflib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "aiovblk"
WAITS = {"call", "within", "limited", "timeout", "wait", "wait_for", "fail_after", "move_on_after"}
FOREVER = "1e6"
TALK = {"logger", "warnings", "print"}  # what it says changes no behaviour


@dataclass(frozen=True)
class Edit:
    """A piece of source, from one (line, column) to another, and what is there instead."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


def edit(node: ast.AST, text: str) -> Edit:
    """An edit of all that a node covers."""
    assert isinstance(node, ast.stmt | ast.expr)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return Edit((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset), text)


def dropped_awaits(node: ast.AST) -> Iterator[Edit]:
    """Places of the kind "await"."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Await):
        yield edit(node, "pass")


def swapped_branches(node: ast.AST) -> Iterator[Edit]:
    """Places of the kind "branch"."""
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Constant):
        yield edit(node.test, f"not ({ast.unparse(node.test)})")


def forgotten_locks(node: ast.AST) -> Iterator[Edit]:
    """Places of the kind "lock"."""
    if not isinstance(node, ast.With | ast.AsyncWith) or len(node.items) != 1:
        return
    item = node.items[0]
    if item.optional_vars is None and isinstance(item.context_expr, ast.Name | ast.Attribute):
        start = (node.lineno, node.col_offset)
        last = item.context_expr
        assert last.end_lineno is not None
        assert last.end_col_offset is not None
        yield Edit(start, (last.end_lineno, last.end_col_offset), "if True")


def forgotten_deadlines(node: ast.AST) -> Iterator[Edit]:
    """Places of the kind "deadline"."""
    if not isinstance(node, ast.Call):
        return
    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    for keyword in node.keywords:
        if keyword.arg == "timeout" and not isinstance(keyword.value, ast.Name):
            yield edit(keyword.value, FOREVER)
    if name in WAITS and node.args and not isinstance(node.args[0], ast.List | ast.Constant):
        seconds = ast.unparse(node.args[0])
        if re.search(r"TIMEOUT|patience|seconds|timeout|PATIENCE", seconds):
            yield edit(node.args[0], FOREVER)


def forgotten_errors(node: ast.AST) -> Iterator[Edit]:
    """Places of the kind "error"."""
    if isinstance(node, ast.Raise):
        yield edit(node, "pass")
    elif isinstance(node, ast.ExceptHandler):
        first, last = node.body[0], node.body[-1]
        if not isinstance(first, ast.Pass):
            whole = edit(last, "")
            yield Edit((first.lineno, first.col_offset), whole.end, "pass")


NEIGHBOURS: dict[type[ast.cmpop], str] = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}


def moved_bounds(node: ast.AST) -> Iterator[Edit]:
    """Places of the kind "bound"."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in NEIGHBOURS:
        operator = NEIGHBOURS[type(node.ops[0])]
        left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
        yield edit(node, f"{left} {operator} {right}")
    elif (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Add | ast.Sub)
        and isinstance(node.right, ast.Constant)
        and node.right.value == 1
    ):
        yield edit(node, ast.unparse(node.left))


KINDS: dict[str, Callable[[ast.AST], Iterator[Edit]]] = {
    "await": dropped_awaits,
    "branch": swapped_branches,
    "lock": forgotten_locks,
    "deadline": forgotten_deadlines,
    "error": forgotten_errors,
    "bound": moved_bounds,
}


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that do something: no hints, assertions, talk, nor how an object is shown."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Assert | ast.arguments | ast.AnnAssign):
            continue
        if isinstance(child, ast.FunctionDef) and child.name in ("__repr__", "__str__"):
            continue
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            root: ast.AST = child.value.func
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in TALK:
                continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from walk(child)


def apply(source: str, change: Edit) -> str:
    """The source with an edit made, if it can still be compiled; else an empty text."""
    lines = source.splitlines(keepends=True)
    (first, left), (last, right) = change.start, change.end
    head, tail = (
        lines[first - 1].encode()[:left].decode(),
        lines[last - 1].encode()[right:].decode(),
    )
    lines[first - 1 : last] = [head + change.text + tail]
    mutated = "".join(lines)
    try:
        compile(mutated, "mutated", "exec")
    except SyntaxError:
        return ""
    return mutated


def places(room: str, kind: str) -> list[tuple[Path, str, str]]:
    """Each way to make one fault of a kind in a room: file, source, and what becomes of it."""
    here = PACKAGE / room
    found = []
    for file in sorted(here.rglob("*.py")) if here.is_dir() else [here.with_suffix(".py")]:
        source = file.read_text()
        for node in walk(ast.parse(source)):
            for change in KINDS[kind](node):
                mutated = apply(source, change)
                if mutated and ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source)):
                    found.append((file, source, mutated))
    return found


def plant(seed: int, wanted: list[str], out: Path) -> None:
    """Write a diff for each ROOM:KIND[@N]."""
    out.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(wanted, 1):
        where, _, skip = each.partition("@")
        room, _, kind = where.partition(":")
        found = places(room, kind)
        if not found:
            sys.exit(f"{where}: there is no place for that")
        random.Random(f"{seed} {number} {where}").shuffle(found)
        file, source, mutated = found[int(skip or 0) % len(found)]
        name = str(file.relative_to(ROOT))
        lines = difflib.unified_diff(
            source.splitlines(True), mutated.splitlines(True), f"a/{name}", f"b/{name}"
        )
        (out / f"{number:02}.diff").write_text("".join(lines))
        print(f"{number:02} {each} {name}")


def copy_tree(target: Path, commit: str | None) -> None:
    """Copy what git knows, as it is now or as it was in a commit."""
    if commit is not None:
        archive = ["git", "archive", commit]
        packed = subprocess.run(archive, cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x"], cwd=target, input=packed.stdout, check=True)
        return
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def nearest_first(tree: Path, mutated: str, arguments: list[str], *, near: bool) -> list[str]:
    """Pytest's arguments, with folders replaced by their files, those first that use the file.

    With ``near`` only those that import something of the file's room, or name it.
    """
    module = mutated.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    room, name = module.split(".")[1], module.rpartition(".")[2]

    def distance(file: Path) -> int:
        text = file.read_text()
        ways = (
            module in text or name in file.stem,
            re.search(rf"\b{name}\b", text) is not None and f"aiovblk.{room}" in text,
            f"aiovblk.{room}" in text or room in file.stem,
            re.search(rf"\b({room}|{name})\b", text) is not None,
        )
        return ways.index(True) if True in ways else len(ways)

    chosen: list[str] = []
    for each in arguments:
        if not (tree / each).is_dir():
            chosen.append(each)
            continue
        files = {file: distance(file) for file in sorted((tree / each).rglob("test_*.py"))}
        last = 3 if near else 4
        found = [file for file in sorted(files, key=files.__getitem__) if files[file] <= last]
        chosen += [str(file.relative_to(tree)) for file in found]
    return chosen


def run(options: argparse.Namespace, arguments: list[str]) -> None:
    """Run pytest once for each diff, and print what it came to."""
    for diff in options.diffs:
        with tempfile.TemporaryDirectory(prefix="mutant-") as place:
            tree = Path(place)
            copy_tree(tree, options.commit)
            patch = diff.read_text()
            subprocess.run(["patch", "-sp1"], cwd=tree, input=patch, text=True, check=True)
            mutated = patch.split()[1].removeprefix("a/")
            tests = nearest_first(tree, mutated, arguments, near=options.near)
            print(f"{diff.stem} {mutated}: {try_one(tree, tests, options.seconds)}", flush=True)


def try_one(tree: Path, arguments: list[str], seconds: float) -> str:
    """Run pytest on a mutated tree; how it ended, in words.

    What fails is run once more by itself: on a busy machine a test may fail that has nothing to do
    with the mutation.
    """
    deadline = time.monotonic() + seconds
    passed: list[str] = []
    while (left := deadline - time.monotonic()) > 0:
        status, text = pytest(tree, [*arguments, *passed], left)
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
        last = (text.strip().splitlines() or ["no output"])[-1]
        if not failed:
            return {0: "NOT CAUGHT", None: "NOT DONE IN TIME"}.get(status, "caught") + f": {last}"
        again = [pytest(tree, ["-n", "0", failed[0]], 300)[0] for _ in range(2)]
        if all(again):
            reason = re.findall(r"^(?:FAILED|ERROR) \S+ - (.*)", text, re.MULTILINE)[:1]
            return f"caught by {failed[0]} {reason}"
        passed.append(f"--deselect={failed[0]}")
    return f"NOT DONE IN TIME: {len(passed)} that failed have passed when they were run alone"


def pytest(tree: Path, arguments: list[str], seconds: float) -> tuple[int | None, str]:
    """Run pytest in a tree; its status (None if it took too long), and what it has said."""
    with (tree / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-x", *arguments],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        with suppress(ProcessLookupError):  # what a hanging test has started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.seek(0)
        return status, log.read()


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    planting = commands.add_parser("plant", help="write diffs")
    planting.add_argument("wanted", nargs="+", metavar="ROOM:KIND")
    planting.add_argument("--seed", type=int, default=1)
    planting.add_argument("--out", type=Path, required=True)
    running = commands.add_parser("run", help="run pytest on each")
    running.add_argument("diffs", nargs="+", type=Path)
    running.add_argument("--seconds", type=float, default=400, help="for each")
    running.add_argument("--near", action="store_true", help="only tests that name the room")
    running.add_argument("--commit", help="mutate this one, and not the files as they are")
    own = sys.argv[1:]
    arguments: list[str] = []
    if "--" in own:
        own, arguments = own[: own.index("--")], own[own.index("--") + 1 :]
    chosen = parser.parse_args(own)
    if chosen.command == "plant":
        plant(chosen.seed, chosen.wanted, chosen.out)
    else:
        run(chosen, arguments)


if __name__ == "__main__":
    main()
