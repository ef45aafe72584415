"""Sections of a page that several programs write."""

from __future__ import annotations

from bench.sections import section, with_section

PAGE = "# Page\n\nhead\n\n## One\n\nfirst\n\n## Two\n\nsecond\n"


def test_section_is_what_lies_between_two_headings() -> None:
    assert section(PAGE, "One") == "first"
    assert section(PAGE, "Two") == "second"
    assert section(PAGE, "Three") is None


def test_section_is_replaced_in_its_place() -> None:
    assert with_section(PAGE, "One", "new\n") == PAGE.replace("first", "new")


def test_section_that_is_missing_comes_last() -> None:
    assert with_section(PAGE, "Three", "| a |") == f"{PAGE}\n## Three\n\n| a |\n"


def test_replacing_twice_changes_nothing_more() -> None:
    once = with_section(PAGE, "Two", "new")
    assert with_section(once, "Two", "new") == once
