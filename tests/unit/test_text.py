"""Escaping of untrusted text."""

from __future__ import annotations

import pytest

from aiovblk.text import escape, quote


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, näh, 磁盘 'x' \"y\"", "plain, näh, 磁盘 'x' \"y\""),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\r\nb\tc\0", r"a\r\nb\tc\x00"),
        ("\x7f\x9b", r"\x7f\x9b"),
        ("\u202eabc\u2066\u200f", r"\u202eabc\u2066\u200f"),
        ("\u2028\u2029\x85", r"\u2028\u2029\x85"),
        ("\udc80\U000e0001", r"\udc80\U000e0001"),
        ("", ""),
    ],
)
def test_nothing_but_what_is_printable_is_left(text: str, shown: str) -> None:
    assert escape(text) == quote(text) == shown
    assert shown.isprintable()


def test_long_text_is_cut_and_the_cut_is_shown() -> None:
    assert quote("a" * 300) == "a" * 300
    assert quote("a" * 301) == "a" * 300 + "..."
    assert quote("\n" * 3, 2) == r"\n\n..."
    assert escape("a" * 10_000) == "a" * 10_000
