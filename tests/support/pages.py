"""What a page of the documentation has to be executed: its Python blocks, files and commands.

Two kinds of fenced blocks hold Python: `python`, and `{code-block} python` with a caption. The
caption is the name of a file, which the reader writes. A `console` block is what he types, after a
prompt (``$`` as any user, ``#`` as root), and what is printed then.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(
    r"^(?P<fence> *```+)(?P<kind>[^\n]*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL
)
_CODE = re.compile(r"\{code-block\} *(\w+)")
_CAPTION = re.compile(r"\A(?::[\w-]+:[^\n]*\n)*?:caption: *(\S+)\n")
_OPTIONS = re.compile(r"\A(?::[\w-]+:[^\n]*\n)+\n?")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    file: str | None
    """The file that it is, if it has a caption."""


@dataclass(frozen=True, slots=True)
class Command:
    """What the reader types, and what it prints."""

    text: str
    output: str
    """Each line with its end; ``...`` stands for anything."""
    root: bool
    """Whether the prompt is root's."""


def pages() -> list[str]:
    """Return the pages of the site and of the top folder, as paths below ROOT."""
    found = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def all_blocks(page: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    for match in _FENCE.finditer((ROOT / page).read_text()):
        kind, text = match["kind"].strip(), textwrap.dedent(match["text"])
        code = _CODE.match(kind)
        caption = _CAPTION.match(text) if code else None
        yield Block(
            code[1] if code else kind,
            _OPTIONS.sub("", text) if code else text,
            caption[1] if caption else None,
        )


def blocks(page: str) -> list[str]:
    """Return the Python blocks of a page that are no files."""
    return [
        block.text for block in all_blocks(page) if block.language == "python" and not block.file
    ]


def commands(text: str) -> Iterator[Command]:
    """Yield the commands of a `console` block; a line that ends in ``\\`` goes on in the next."""
    typed, output, root = "", "", False
    for line in text.splitlines(keepends=True):
        if typed.endswith("\\\n"):
            typed += line
        elif line.startswith(("$ ", "# ")):
            if typed:
                yield Command(typed, output, root)
            typed, output, root = line[2:], "", line.startswith("#")
        else:
            output += line
    if typed:
        yield Command(typed, output, root)


async def run(block: str, **names: Any) -> None:
    """Run a block that awaits, with these names besides its own."""
    exec("async def block():\n" + textwrap.indent(block, "    "), names)
    await names["block"]()
