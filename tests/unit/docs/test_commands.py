"""What the pages tell the reader to type is what the command accepts."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator

import pytest

from aiovblk.cli import make_parser

from ...support.pages import all_blocks, pages


def typed() -> Iterator[tuple[str, str]]:
    """Yield each page, and each call of the command in its blocks."""
    for page in pages():
        for block in all_blocks(page):
            if block.language in ("", "console", "sh"):
                for call in re.findall(
                    r"^(?!pip ).*?\b(aiovblk [a-z].*)", block.text, re.MULTILINE
                ):
                    yield page, call


def words_of(call: str) -> list[str]:
    """Return the arguments of a call, up to what ends it in a shell, or what explains it."""
    text = re.sub(r"[\[\]]|\w+\|(?=/)", "", re.split(r"  +", call)[0])
    words = shlex.split(text, comments=True)[1:]
    words = [{"SECONDS": "1", "SIZE": "1G"}.get(word, word) for word in words]
    for end in ("&", "|", "&&", ";", ">"):
        if end in words:
            words = words[: words.index(end)]
    return words


CALLS = sorted(set(typed()))


def test_there_are_many() -> None:
    assert len(CALLS) > 60


@pytest.mark.parametrize(("page", "call"), CALLS)
def test_a_command_is_accepted(page: str, call: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(call)
    with contextlib.suppress(SystemExit):
        make_parser().parse_args(words)
    printed = capsys.readouterr().err
    assert not printed, f"{page}: {call}: {printed}"
