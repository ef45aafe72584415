"""What is logged and how: options anywhere, the environment, JSON; and no passwords in it."""

from __future__ import annotations

import json
import logging
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest

from aiovblk import cli
from aiovblk.cli import logs, make_parser
from aiovblk.cli.redaction import redact


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LEVEL", "FORMAT"):
        monkeypatch.delenv(f"AIOVBLK_LOG_{variable}", raising=False)


@contextmanager
def logging_as(*words: str) -> Iterator[None]:
    """Log as a new process does that is called so."""
    loggers = [logging.getLogger(), logging.getLogger("asyncio")]
    before = [(logger.level, logger.handlers) for logger in loggers]
    loggers[0].handlers = []
    try:
        logs.configure_logging(make_parser().parse_args(words))
        yield
    finally:
        for logger, (level, handlers) in zip(loggers, before, strict=True):
            logger.handlers = handlers
            logger.setLevel(level)


def level(*words: str) -> tuple[str, str]:
    parsed = make_parser().parse_args(words)
    return parsed.log_level, parsed.log_format


# Options


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("list", "warning"),
        ("-v list", "debug"),
        ("list -v", "debug"),
        ("--verbose copy a b", "debug"),
        ("copy a --verbose b", "debug"),
        ("--log-level info list", "info"),
        ("list --log-level error", "error"),
        ("-v list --log-level info", "info"),
    ],
)
def test_level_is_given_before_the_command_or_behind_it(words: str, expected: str) -> None:
    assert level(*words.split()) == (expected, "text")


def test_format_is_given_before_the_command_or_behind_it() -> None:
    assert level("--log-format", "json", "list")[1] == "json"
    assert level("list", "--log-format=json", "-v") == ("debug", "json")


def test_environment_gives_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOVBLK_LOG_LEVEL", "error")
    monkeypatch.setenv("AIOVBLK_LOG_FORMAT", "json")
    assert level("list") == ("error", "json")
    assert level("-v", "list", "--log-format", "text") == ("debug", "text")
    assert level("list", "-v")[0] == "debug"
    monkeypatch.setenv("AIOVBLK_LOG_LEVEL", "")
    assert level("list")[0] == "warning"


@pytest.mark.parametrize(
    ("variable", "value", "words", "reason"),
    [
        ("AIOVBLK_LOG_LEVEL", "loud", "list", "must be one of debug, info, warning, error, not 'l"),
        ("AIOVBLK_LOOP", "trio", "copy a b", "must be one of uvloop, asyncio, not 'trio'"),
        ("AIOVBLK_CONCURRENCY", "0", "serve a", "must be a whole number from 1 to"),
        ("AIOVBLK_SLOW_REQUEST", "soon", "mount a", "must be a positive number of seconds"),
        ("AIOVBLK_DRAIN_TIMEOUT", "-1", "serve a", "must be a positive number of seconds"),
    ],
)
def test_value_of_the_environment_that_cannot_be_is_refused_by_its_name(
    variable: str,
    value: str,
    words: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(words.split())
    assert caught.value.code == 2
    assert f"environment variable {variable}: {reason}" in capsys.readouterr().err


def test_environment_counts_however_argparse_parses_intermixed_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Newer Pythons do not call parse_known_args() of the parser for that."""
    monkeypatch.setattr(
        ArgumentParser, "parse_known_intermixed_args", ArgumentParser.parse_known_args
    )
    monkeypatch.setenv("AIOVBLK_LOOP", "asyncio")
    assert make_parser().parse_args(["copy", "a", "b"]).loop == "asyncio"


@pytest.mark.parametrize(
    ("variable", "value", "words", "name", "expected"),
    [
        ("AIOVBLK_LOOP", "asyncio", "copy a b", "loop", "asyncio"),
        ("AIOVBLK_CONCURRENCY", "7", "mount a", "concurrency", 7),
        ("AIOVBLK_HANDLER_TIMEOUT", "1.5", "serve a", "handler_timeout", 1.5),
        ("AIOVBLK_SLOW_REQUEST", "3", "serve a", "slow_request", 3.0),
        ("AIOVBLK_UNMOUNT_TIMEOUT", "4", "mount a", "unmount_timeout", 4.0),
        ("AIOVBLK_MAX_CONNECTIONS", "5", "serve a", "max_connections", 5),
        ("AIOVBLK_IDLE_TIMEOUT", "6", "serve a", "idle_timeout", 6.0),
        ("AIOVBLK_DRAIN_TIMEOUT", "8", "serve a", "drain_timeout", 8.0),
    ],
)
def test_environment_gives_the_default_of_an_option(
    variable: str,
    value: str,
    words: str,
    name: str,
    expected: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(make_parser().parse_args(words.split()), name) == expected


# What is written


def test_levels_below_the_chosen_one_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_as("list", "--log-level", "info"):
        logging.getLogger("aiovblk").debug("much")
        logging.getLogger("aiovblk").info("some")
        logging.getLogger("asyncio").info("loop")
    assert capsys.readouterr().err == "aiovblk: some\naiovblk: loop\n"


def test_lines_of_json_have_what_a_collector_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_as("-v", "list", "--log-format", "json"):
        try:
            raise ValueError("no\x1b[2J")
        except ValueError:
            logging.getLogger("aiovblk.part").warning("slow: %s\nnext", "read", exc_info=True)
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["level"], found["logger"]) == ("warning", "aiovblk.part")
    assert found["message"] == "slow: read\nnext"
    assert found["traceback"].startswith("Traceback")
    assert isinstance(found["process"], int)
    assert datetime.fromisoformat(found["time"]).utcoffset() == timedelta(0)


def test_error_that_ends_a_command_is_a_line_of_json_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["info", "file:missing", "--log-format", "json"]) == 1
    found = json.loads(capsys.readouterr().err)
    assert (found["level"], found["message"]) == ("error", "missing: No such file or directory")


# Passwords


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'nbd://me:secret@host/a' is no SPEC", "'nbd://me:...@host/a' is no SPEC"),
        ("s3://me:se/cr@et@host", "s3://me:...@host"),
        ("x ftp://me:my secret@host/ y", "x ftp://me:...@host/ y"),
        ("https://me:secret@host/file?token=1 failed", "https://host/file failed"),
        ("nbd://host:10809/a: refused", "nbd://host:10809/a: refused"),
        ("nbd://host:10809/a@b", "nbd://host:10809/a@b"),
        ("nbd://host: refused by me@host", "nbd://host: refused by me@host"),
        ("nbds+unix://me@/?socket=/s", "nbds+unix://me@/?socket=/s"),
        ("nothing: here", "nothing: here"),
    ],
)
def test_passwords_and_queries_of_web_urls_are_left_out(text: str, expected: str) -> None:
    assert redact(text) == expected


SECRETS = [
    "nbd://me:hunter2@host/x",
    "nbd://me:hunter2/x@host",
    "ftp://me:hunter2@host/x",
    "s3://me:hunter2@bucket/x?sise=3",
    "https://me:hunter2@host/x?block_size=3",
    "https://host/x?token=hunter2&block_size=3",
    "NAME=nbd://me:hunter2@host/x",
    "nbd://me:hunter2@host/x?block_size=3",
    "gs://me:hunter2@bucket/x?snapshot=",
]

Call = Callable[[str], list[str]]

CALLS: list[Call] = [
    lambda spec: ["copy", spec, "memory:1M"],
    lambda spec: ["copy", "memory:1M", spec],
    lambda spec: ["copy", "memory:1M", "memory:1M", spec],
    lambda spec: ["copy", "memory:1M", "memory:1M", f"--{spec}"],
    lambda spec: ["serve", spec, spec],
    lambda spec: ["serve", "memory:1M", "--port", spec],
    lambda spec: ["serve", "memory:1M", "--workers", "2", "--layer", f"mirror:with={spec}"],
    lambda spec: ["serve", "memory:1M", "--layer", f"cache:size={spec}"],
    lambda spec: ["serve", "memory:1M", "--layer", spec],
    lambda spec: ["serve", "memory:1M", "--log-level", spec],
    lambda spec: ["resize", spec, "1M"],
    lambda spec: [spec],
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_errors_of_usage_show_no_password(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    for spec in SECRETS:
        try:
            status = cli.main(CALLS[number](spec))
        except SystemExit as exc:
            status = int(exc.code or 0)
        output = capsys.readouterr()
        assert status in (1, 2), spec
        assert "hunter2" not in output.out + output.err
