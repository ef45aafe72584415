"""docs/architecture.md names files that are there, and the first path is one that can be read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
PACKAGE = ROOT / "aiovblk"


SECTION = TEXT.partition("## The first path")[2].partition("\n## ")[0]


def first_path() -> list[tuple[Path, int]]:
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", SECTION, re.MULTILINE)
    return [(PACKAGE / name, int(count)) for name, count in rows]


def named_calls() -> set[tuple[str, str]]:
    """Return which file of the first path calls which file beside it, as the page has them."""
    rows = re.findall(r"^\| ((?:`[\w/]+\.py`(?:, )?)+) \| `([\w/]+\.py)` \|", SECTION, re.MULTILINE)
    return {(caller, file) for callers, file in rows for caller in re.findall(r"[\w/.]+", callers)}


def imported_files(path: Path) -> Iterator[Path]:
    """Yield the files of the package that a file imports by a relative import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            origin = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            yield origin.with_suffix(".py")
            yield from (origin / f"{alias.name}.py" for alias in node.names)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w/]+/)`", TEXT))))
def test_folders_are_there(path: str) -> None:
    assert (PACKAGE / path).is_dir() or (ROOT / path).is_dir()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w]+/[\w/]+\.py)`", TEXT))))
def test_files_are_there(path: str) -> None:
    assert (PACKAGE / path).is_file() or (ROOT / path).is_file()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(\w+\.py)`", TEXT))))
def test_files_named_without_their_folder_are_there(path: str) -> None:
    assert list(PACKAGE.rglob(path))


def test_the_first_path_can_be_read_in_an_afternoon() -> None:
    assert len(first_path()) > 20
    assert sum(len(path.read_text().splitlines()) for path, _ in first_path()) <= 6000


@pytest.mark.parametrize(("path", "count"), first_path(), ids=lambda each: str(each)[-30:])
def test_line_counts_are_about_right(path: Path, count: int) -> None:
    assert abs(len(path.read_text().splitlines()) - count) <= max(20, count // 8)


def test_the_first_path_calls_other_files_of_its_rooms_at_the_named_points_only() -> None:
    path = {file for file, _ in first_path()}
    rooms = {PACKAGE / name for name in ("dispatch", "stream", "kernel", "mounting")}
    beside = {file for room in rooms for file in room.rglob("*.py")} - path
    calls = {
        (str(caller.relative_to(PACKAGE)), str(file.relative_to(PACKAGE)))
        for caller in path
        if caller.parent in rooms
        for file in imported_files(caller)
        if file in beside and file.name != "__init__.py"
    }
    assert calls == named_calls()
