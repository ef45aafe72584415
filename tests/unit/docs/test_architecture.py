"""docs/architecture.md names files that are there, and the first path is one that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
PACKAGE = ROOT / "aiovblk"


def first_path() -> list[tuple[Path, int]]:
    section = TEXT.partition("## The first path")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", section, re.MULTILINE)
    return [(PACKAGE / name, int(count)) for name, count in rows]


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
    assert sum(len(path.read_text().splitlines()) for path, _ in first_path()) <= 6274


@pytest.mark.parametrize(("path", "count"), first_path(), ids=lambda each: str(each)[-30:])
def test_line_counts_are_about_right(path: Path, count: int) -> None:
    assert abs(len(path.read_text().splitlines()) - count) <= max(20, count // 8)
