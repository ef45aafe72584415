"""A directive that documents a command from its argparse parser.

    ```{command-reference}
    ```

writes a section for each command of ``aiovblk``: what it does, how it is called, and a table for
each group of its options. The parser is the one that the command line uses, so nothing in these
sections can be out of date.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

from commandref.commands import Page, groups, help_of, pages, value_of  # of tools/
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from aiovblk.cli import COMMANDS
from aiovblk.cli.parser import EnvironmentParser

WIDTH = 88  # columns of the usage line


class CommandReference(SphinxDirective):
    """The sections of all commands."""

    def run(self) -> list[nodes.Node]:
        """Write the sections as Markdown, and have them parsed like the rest of the page."""
        self.env.note_reread()  # the parsers may have changed, though the page has not
        text = "\n".join(command_pages())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def command_pages() -> Iterator[str]:
    """Yield the lines of a section for each command, in the order of ``aiovblk --help``."""
    for page in pages():
        yield from describe(page)


def describe(page: Page) -> Iterator[str]:
    """Yield the Markdown of the section of a command, or of the command line as a whole."""
    parser = page.parser
    yield f"\n## {page.name}\n"
    yield f"{markdown(parser.description or page.purpose)}\n"
    yield f"```text\n{usage(parser)}\n```\n"
    for title, description, actions in groups(parser):
        yield f"**{title[:1].upper()}{title[1:]}**\n"
        if description:
            yield from prose(description, parser)
        yield from describe_arguments(parser, actions)
    if parser.epilog:
        yield from prose(parser.epilog, parser)


def describe_arguments(parser: EnvironmentParser, actions: list[argparse.Action]) -> Iterator[str]:
    """Yield a definition list: each argument, and what it means."""
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from list_commands()
        else:
            yield f"{invocation(action)}\n: {markdown(help_of(parser, action))}\n"


def list_commands() -> Iterator[str]:
    """Yield a table of the commands, with links to their sections."""
    yield "| command | |\n|---|---|"
    for name, (purpose, _) in COMMANDS.items():
        yield f"| [`{name}`](#aiovblk-{name}) | {markdown(purpose)} |"
    yield ""


def invocation(action: argparse.Action) -> str:
    """Return how an argument is written: ``--cache SIZE``."""
    value = argparse.HelpFormatter("")._format_args(action, value_of(action))
    if not action.option_strings:
        return f"`{value}`"
    return ", ".join(f"`{f'{option} {value}'.strip()}`" for option in action.option_strings)


def usage(parser: EnvironmentParser) -> str:
    """Return the usage, as wide as the page and without the colours of Python 3.14."""
    formatter = argparse.HelpFormatter(parser.prog, width=WIDTH)
    formatter.add_usage(None, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return formatter.format_help().strip()


def prose(text: str, parser: EnvironmentParser) -> Iterator[str]:
    """Yield a description as a paragraph; one that is laid out in lines, as it is."""
    text = text.replace("%(prog)s", parser.prog).strip()
    yield f"```text\n{text}\n```\n" if "\n" in text else f"{markdown(text)}\n"


def markdown(text: str) -> str:
    """Return a help text as Markdown in one line: options and names of variables are code."""
    text = re.sub(r"(?<![`\w])(\$?[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)", r"`\1`", " ".join(text.split()))
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else escaped(part) for part in parts)


def escaped(text: str) -> str:
    """Return text in which Markdown sees no markup, and options are code."""
    text = re.sub(r"([*_\[\]<>{}|$])", r"\\\1", text)
    return re.sub(r"(?<![\w-])(--?[a-z][a-z-]*)", r"`\1`", text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
