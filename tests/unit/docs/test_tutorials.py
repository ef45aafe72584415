"""What the tutorials have that needs neither root nor a kernel: files, and commands of any user."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...support.console import play, shell
from ...support.pages import Command

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]


@pytest.mark.deadline(240)
@pytest.mark.parametrize(("page", "count"), [("first-disk", 1), ("fastapi", 1)])
async def test_a_tutorial_is_followed_as_any_user(page: str, count: int, tmp_path: Path) -> None:
    assert await play(f"docs/start/{page}.md", tmp_path, root=False) == count


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("echo hello", "hello\n"),
        ("echo one and two", "...two\n"),
        ("(cat < /dev/null; echo later) &", "later\n"),
        ("echo no such thing; false", "no such ...\n"),
    ],
)
async def test_what_a_page_says_is_accepted(text: str, output: str, tmp_path: Path) -> None:
    async with shell(tmp_path) as terminal:
        await terminal.type(Command(text, output, root=False))


@pytest.mark.parametrize(
    ("text", "output"), [("false", ""), ("echo unexpected", ""), ("echo one", "two\n")]
)
async def test_anything_else_is_an_error(text: str, output: str, tmp_path: Path) -> None:
    async with shell(tmp_path) as terminal:
        with pytest.raises(AssertionError, match="where the page says"):
            await terminal.type(Command(text, output, root=False))
