"""The reference has every public name and every option; links between files lead to pages."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

import aiovblk
from aiovblk.cli import make_parser
from aiovblk.cli.parser import EnvironmentParser

from ...support.pages import DOCS, ROOT

sys.path += [str(DOCS / "_ext"), str(ROOT / "tools")]

import command_reference  # found by the path above
import repository_links
from commandref.commands import Page, subparsers

REFERENCE = {path.stem: path.read_text() for path in (DOCS / "reference" / "python").glob("*.md")}
MODULES = (
    "aiovblk",
    "aiovblk.storage",
    "aiovblk.storage.objects",
    "aiovblk.storage.backup",
    "aiovblk.metrics",
)


@pytest.mark.parametrize("module", [*MODULES, "aiovblk.testing"])
def test_every_public_name_is_documented(module: str) -> None:
    documented = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)", "\n".join(REFERENCE.values()), re.M))
    for name in importlib.import_module(module).__all__:
        is_error = name in vars(aiovblk.errors)  # documented as a whole module
        assert is_error or {f"{module}.{name}", f"aiovblk.storage.{name}"} & documented, name


def test_modules_without_a_list_of_names_are_documented_whole() -> None:
    for name in ("errors", "events", "tls"):
        assert f".. automodule:: aiovblk.{name}" in REFERENCE[name]


def test_every_command_and_option_is_documented() -> None:
    page = "\n".join(command_reference.command_pages())
    for name, command in subparsers(make_parser()).items():
        section = page.partition(f"\n## aiovblk {name}\n")[2].partition("\n## ")[0]
        for action in command._actions:
            assert all(f"`{option}" in section for option in action.option_strings), name


def test_defaults_are_filled_in_and_markup_is_escaped() -> None:
    description = "Paint <it> with `--colour NAME`."
    parser = EnvironmentParser(prog="aiovblk paint", description=description)
    parser.add_argument("--colour", default="red", help="the *first* colour (default %(default)s)")
    more = parser.add_argument_group("more", "Colours:\n  red  <like> fire\n")
    more.add_argument("--thick", action="store_true")
    parser.epilog = "%(prog)s --colour green"
    text = "\n".join(command_reference.describe(Page("aiovblk paint", "", parser)))
    assert r"Paint \<it\> with `--colour NAME`." in text
    assert "`--colour COLOUR`\n: the \\*first\\* colour (default red)" in text
    assert "aiovblk paint [-h] [--colour COLOUR] [--thick]" in text
    assert "```text\nColours:\n  red  <like> fire\n```" in text
    assert "\naiovblk paint `--colour` green\n" in text


@pytest.mark.parametrize(
    ("link", "file", "page", "expected"),
    [
        ("docs/testing.md", "CONTRIBUTING.md", "docs/contributing.md", "testing.md"),
        ("SECURITY.md", "CONTRIBUTING.md", "docs/contributing.md", "explanation/security.md"),
        ("../CONTRIBUTING.md", "docs/testing.md", "docs/testing.md", "contributing.md"),
        ("../bench/plot.py", "docs/performance.md", "docs/performance.md", "../bench/plot.py"),
    ],
)
def test_links_between_files_lead_to_pages(link: str, file: str, page: str, expected: str) -> None:
    assert repository_links.target(link, ROOT / file, ROOT / page) == expected


def test_pages_that_are_files_are_there() -> None:
    for name, file in repository_links.PAGES.items():
        assert file.is_file()
        assert Path(f"{DOCS / name}.md").is_file()
