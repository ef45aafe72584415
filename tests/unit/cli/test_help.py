"""The help of each command: groups, an example, metavars, environment variables."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from aiovblk import cli
from aiovblk.cli import COMMANDS, make_parser
from aiovblk.cli.layerkinds import KINDS
from aiovblk.cli.parser import CommandParser

ROOT = Path(__file__).resolve().parents[3]


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_a_usage_an_example_and_the_log(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(capsys, command)
    usage, *_ = text.splitlines()
    assert usage.startswith(f"usage: aiovblk {command} [OPTION...]")
    assert "\nlogging:\n" in text
    examples = text.partition("\nexamples:\n")[2]
    assert f"\n  aiovblk {command}" in examples


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_accepted(command: str) -> None:
    parser = CommandParser()
    COMMANDS[command][1](parser)
    for _, call in parser.examples:
        words = shlex.split(call.partition(" | ")[0])
        assert words[:2] == ["aiovblk", command]
        make_parser().parse_args(words[1:])


@pytest.mark.parametrize(
    ("command", "usage", "groups"),
    [
        ("mount", "SPEC [/dev/nbdN | /dev/ublkbN]", ["device", "layers", "requests", "kernel"]),
        ("serve", "SPEC | NAME=SPEC...", ["listening", "process", "TLS", "limits for clients"]),
        ("copy", "SOURCE TARGET", ["layers"]),
        ("clone", "DISK?snapshot=NAME TARGET", []),
        ("resize", "DISK | /dev/nbdN | /dev/ublkbN SIZE", []),
    ],
)
def test_usage_says_what_is_source_and_target_and_options_are_grouped(
    command: str, usage: str, groups: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(capsys, command)
    assert text.splitlines()[0].endswith(f"[OPTION...] {usage}")
    for group in groups:
        assert f"\n{group}:\n" in text


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["-v", "serve", "--help"]])
def test_parser_for_a_command_line_has_all_that_it_needs(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for parser in (make_parser(words), make_parser()):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    with pytest.raises(SystemExit):
        make_parser(words).parse_args(["list", "--json"])
    assert "unrecognized arguments: --json" in capsys.readouterr().err


def test_help_names_the_variable_of_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "serve")
    for variable in ("LOOP", "CONCURRENCY", "SLOW_REQUEST", "DRAIN_TIMEOUT", "MAX_CONNECTIONS"):
        assert f"[$AIOVBLK_{variable}]" in text
    assert "[$AIOVBLK_LOG_LEVEL]" in help_of(capsys)


def test_every_variable_and_layer_is_documented() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    for name, (_, configure) in COMMANDS.items():
        parser = CommandParser(prog=name)
        configure(parser)
        for variable in parser.variables.values():
            assert f"`{variable}`" in pages
    for name, kind in KINDS.items():
        assert f"| `{name}` |" in pages
        for option in kind.options:
            assert f"`{option}" in pages


def test_help_keeps_the_lines_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = help_of(capsys, "mount").splitlines()
    assert "  read-only   refuse all writes" in lines
