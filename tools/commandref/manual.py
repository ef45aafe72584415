"""Write the manual pages in roff, as man(7) describes it: one for each command, as git has them."""

from __future__ import annotations

import argparse
import os
import time
from argparse import Action
from collections.abc import Iterable, Iterator
from pathlib import Path

from aiovblk import __version__

from .commands import Page, groups, help_of, pages, subparsers, value_of

EXIT_STATUS = (
    ("0", "Success."),
    ("1", "It failed; a line on the standard error tells what, and what to do about it."),
    ("2", "The call is wrong: an unknown option, a value that cannot be, a SPEC that is none."),
    ("130", "Ctrl-C has ended it before it was done."),
)

EXIT_STATUS_OF = {
    "aiovblk serve": (
        (
            "that of the command",
            "With --run: what its command ends with; 128 and the number of the signal if one has "
            "ended it, such as 143 for SIGTERM, which it gets when the server is signalled.",
        ),
    ),
}
"""Beside these, by the name of the page."""

VARIABLES = (
    ("AIOVBLK_KEY_FILE", "The file with the key of an encrypted disk in an object store."),
    ("NOTIFY_SOCKET", "Set by systemd for a unit of Type=notify: `aiovblk mount` reports there."),
    ("LISTEN_PID, LISTEN_FDS", "Set by systemd: the sockets that `aiovblk serve` listens on."),
)
"""Beside those that give the values of options."""


def write_manuals(folder: Path) -> list[Path]:
    """Write ``aiovblk.1`` and ``aiovblk-COMMAND.1`` into a folder; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for page in pages():
        path = folder / f"{page.name.replace(' ', '-')}.1"
        path.write_text("\n".join(roff(page)) + "\n")
        written.append(path)
    return written


def roff(page: Page) -> Iterator[str]:
    """Yield the lines of a page."""
    title = page.name.replace(" ", "-")
    yield f'.TH "{title.upper()}" "1" "{_date()}" "aiovblk {__version__}" "User Commands"'
    yield from (".nh", ".ad l")  # no hyphens in options and paths
    yield from section("NAME", [f"{escape(title)} \\- {escape(page.purpose)}"])
    yield from section("SYNOPSIS", [".nf", escape(page.usage), ".fi"])
    yield from section("DESCRIPTION", paragraphs(page.parser.description or ""))
    for heading, text, actions in groups(page.parser):
        if any(isinstance(action, argparse._SubParsersAction) for action in actions):
            yield from section("COMMANDS", _commands(page))
        else:
            items = (item for action in actions for item in _argument(page, action))
            shown = "ARGUMENTS" if heading == "positional arguments" else heading.upper()
            yield from section(shown, [*paragraphs(text), *items])
    yield from section("ENVIRONMENT", _environment(page))
    statuses = (*EXIT_STATUS, *EXIT_STATUS_OF.get(page.name, ()))
    yield from section("EXIT STATUS", (line for each in statuses for line in item(*each)))
    yield from section("EXAMPLES", _examples(page))
    yield from section("SEE ALSO", [_see_also(page)])


def section(heading: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield a section; nothing for one without lines."""
    found = list(lines)
    if found:
        yield f'.SH "{escape(heading)}"'
        yield from found


def item(term: str, text: str) -> Iterator[str]:
    """Yield an entry of a list: a term, and what it means."""
    yield from (".TP", f"\\fB{escape(term)}\\fR", escape(text))


def paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs; indented ones as they are."""
    for number, paragraph in enumerate(text.split("\n\n") if text else ()):
        if number:
            yield ".PP"
        if paragraph.startswith(" "):
            yield from (".nf", *map(escape, paragraph.split("\n")), ".fi")
        else:
            yield escape(" ".join(paragraph.split()))


def escape(text: str) -> str:
    r"""Escape what has a meaning in roff: backslashes, hyphens, a dot or ' that begins a line."""
    shown = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{shown}" if shown.startswith((".", "'")) else shown


def _date() -> str:
    # So that a build from the same source has the same bytes (reproducible-builds.org).
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _argument(page: Page, action: Action) -> Iterator[str]:
    value = value_of(action)
    shown = f" \\fI{escape(value)}\\fR" if value else ""
    names = [f"\\fB{escape(name)}\\fR{shown}" for name in action.option_strings]
    yield from (".TP", ", ".join(names) or shown.strip(), escape(help_of(page.parser, action)))


def _commands(page: Page) -> Iterator[str]:
    for each in pages():
        if each.name != page.name:
            yield from item(each.name.replace(" ", "-") + "(1)", each.purpose)


def _environment(page: Page) -> Iterator[str]:
    yield "These give the value of an option that is not given:"
    parsers = [page.parser]
    if page.name == "aiovblk":
        parsers += subparsers(page.parser).values()
    found = {
        variable: action.option_strings[-1]
        for parser in parsers
        for action in parser._actions
        if (variable := parser.variables.get(action.dest)) and action.nargs != 0
    }
    for variable, option in {**_LOGGING, **found}.items():
        yield from item(variable, option)
    yield from (".PP", "Further ones:")
    for each in VARIABLES:
        yield from item(*each)


_LOGGING = {"AIOVBLK_LOG_LEVEL": "--log-level", "AIOVBLK_LOG_FORMAT": "--log-format"}


def _examples(page: Page) -> Iterator[str]:
    for number, (purpose, call) in enumerate(page.parser.examples):
        if number:
            yield ".PP"
        yield from (f"{escape(purpose[0].upper() + purpose[1:])}:", ".PP")
        yield from (".RS 4", ".nf", escape(call), ".fi", ".RE")


def _see_also(page: Page) -> str:
    others = [each.name.replace(" ", "-") for each in pages() if each.name != page.name]
    return ", ".join(f"\\fB{escape(name)}\\fR(1)" for name in others)
