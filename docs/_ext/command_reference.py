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

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from aiovblk import cli

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
    parser = cli.make_parser()
    yield from describe(parser, "aiovblk", level=2)
    commands = subcommands(parser)
    summaries = {action.dest: action.help or "" for action in commands._choices_actions}
    for name, command in commands.choices.items():
        yield from describe(command, f"aiovblk {name}", level=2, summary=summaries.get(name, ""))


def subcommands(parser: argparse.ArgumentParser) -> Any:
    """Return the action of argparse that has the subcommands of a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action
    raise ValueError(f"{parser.prog} has no subcommands")


def describe(
    parser: argparse.ArgumentParser, name: str, *, level: int, summary: str = ""
) -> Iterator[str]:
    """Yield the Markdown of one parser.

    Args:
        parser: of the command, or of the whole command line.
        name: its heading.
        level: of the heading, 1 for the title of a page.
        summary: one line, for a parser that has no description.

    """
    yield f"\n{'#' * level} {name}\n"
    yield f"{markdown(parser.description or summary)}\n"
    yield f"```text\n{usage(parser)}\n```\n"
    for group in parser._action_groups:
        actions = [each for each in group._group_actions if each.help != argparse.SUPPRESS]
        if not actions and not group.description:
            continue
        title = group.title or "options"
        yield f"**{title[:1].upper()}{title[1:]}**\n"
        if group.description:
            yield from prose(group.description, parser)
        yield from describe_arguments(parser, actions)
    if parser.epilog:
        yield from prose(parser.epilog, parser)


def describe_arguments(
    parser: argparse.ArgumentParser, actions: list[argparse.Action]
) -> Iterator[str]:
    """Yield a definition list: each argument, and what it means."""
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from list_commands(action)
        else:
            yield f"{invocation(action)}\n: {markdown(expanded(parser, action))}\n"


def list_commands(action: Any) -> Iterator[str]:
    """Yield a table of the commands, with links to their sections."""
    yield "| command | |\n|---|---|"
    for choice in action._choices_actions:
        yield f"| [`{choice.dest}`](#aiovblk-{choice.dest}) | {markdown(choice.help or '')} |"
    yield ""


def invocation(action: argparse.Action) -> str:
    """Return how an argument is written: ``--cache SIZE``."""
    value = argparse.HelpFormatter("")._format_args(action, metavar_of(action))
    if not action.option_strings:
        return f"`{value}`"
    return ", ".join(f"`{f'{option} {value}'.strip()}`" for option in action.option_strings)


def metavar_of(action: argparse.Action) -> str:
    """Return what stands for the value of an argument."""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def expanded(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return the help of an argument with its default filled in."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def usage(parser: argparse.ArgumentParser) -> str:
    """Return the usage, as wide as the page and without the colours of Python 3.14."""
    formatter = argparse.HelpFormatter(parser.prog, width=WIDTH)
    formatter.add_usage(None, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return formatter.format_help().strip()


def prose(text: str, parser: argparse.ArgumentParser) -> Iterator[str]:
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
