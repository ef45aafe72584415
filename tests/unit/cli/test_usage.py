"""Wrong calls of the command: one clear line, and exit status 2."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovblk import cli
from aiovblk.cli import values
from aiovblk.cli.parser import CommandParser

Usage = Callable[..., str]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def usage(capsys: pytest.CaptureFixture[str]) -> Usage:
    """Call the command wrongly; return the last line of its errors."""

    def usage(*words: str) -> str:
        try:
            status = cli.main(words)
        except SystemExit as exc:  # argparse
            status = int(exc.code or 0)
        output = capsys.readouterr()
        assert status == 2, output
        assert output.out == ""
        assert "Traceback" not in output.err
        return output.err.splitlines()[-1]

    return usage


# Numbers


SECONDS = [
    ("mount", "memory:1M", "--handler-timeout"),
    ("mount", "memory:1M", "--slow-request"),
    ("mount", "memory:1M", "--timeout"),
    ("mount", "memory:1M", "--unmount-timeout"),
    ("mount", "memory:1M", "--identity", "x", "--survive"),
    ("serve", "memory:1M", "--handler-timeout"),
    ("serve", "memory:1M", "--slow-request"),
    ("serve", "memory:1M", "--handshake-timeout"),
    ("serve", "memory:1M", "--drain-timeout"),
    ("unmount", "/dev/nbd0", "--timeout"),
    ("top", "--interval"),
]


@pytest.mark.parametrize("words", SECONDS, ids=" ".join)
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "0", "1e30", "", " ", "soon", "1h"])
def test_seconds_are_a_positive_finite_number(usage: Usage, words: list[str], number: str) -> None:
    *_, option = words
    error = usage(*words[:-1], f"{option}={number}")
    assert re.search(f"argument {option}: must be a positive number of seconds", error)


COUNTS = [
    (("mount", "memory:1M", "--concurrency"), 1, 2**31 - 1),
    (("mount", "memory:1M", "--workers"), 1, 1024),
    (("mount", "memory:1M", "--connections"), 1, 1024),
    (("mount", "memory:1M", "--max-sectors-kb"), 4, 32768),
    (("mount", "memory:1M", "--read-ahead-kb"), 0, (1 << 30) - 4),
    (("serve", "memory:1M", "--port"), 0, 65535),
    (("serve", "memory:1M", "--concurrency"), 1, 2**31 - 1),
    (("serve", "memory:1M", "--workers"), 1, 1024),
    (("serve", "memory:1M", "--max-connections"), 1, 2**31 - 1),
    (("copy", "memory:1M", "memory:1M", "--requests"), 1, 2**31 - 1),
]


@pytest.mark.parametrize(("words", "least", "most"), COUNTS, ids=lambda each: str(each)[-30:])
def test_counts_are_whole_numbers_in_their_range(
    usage: Usage, words: tuple[str, ...], least: int, most: int
) -> None:
    *before, option = words
    for number in (least - 1, most + 1, "9" * 5000, "nan", "inf", "1.5", "1_0", "", " ", "many"):
        error = usage(*before, f"{option}={number}")
        assert re.search(rf"argument {option}: must be .* from {least} to {most}, not ", error)


@pytest.mark.parametrize("option", ["--max-sectors-kb", "--read-ahead-kb"])
def test_kib_of_the_kernels_requests_are_whole_pages(usage: Usage, option: str) -> None:
    error = usage("mount", "memory:1M", option, "6")
    assert f"argument {option}: must be a multiple of 4" in error


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "", " ", "1X", "9" * 5000, "9999999P"])
def test_size_of_a_cache_is_a_positive_size(usage: Usage, size: str) -> None:
    assert "argument --cache: " in usage("serve", "memory:1M", f"--cache={size}")


@pytest.mark.parametrize(("command", "least", "most"), [("mount", 512, 4096), ("serve", 1, 65536)])
def test_block_size_is_a_power_of_two_that_the_client_takes(
    usage: Usage, command: str, least: int, most: int
) -> None:
    for number in ("0", "-512", "3", "1000", str(2 * most), "nan", "", "4.1K"):
        error = usage(command, "memory:1M", f"--block-size={number}")
        assert "argument --block-size: " in error
    error = usage(command, "memory:1M", f"--block-size={2 * most}")
    assert f"must be a power of two from {least} to {most}, not '{2 * most}'" in error


@pytest.mark.parametrize("text", ["1", " 7 ", "+3"])
def test_count_may_have_spaces_and_a_plus(text: str) -> None:
    assert values.count()(text) == int(text)


# Texts


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "memory:1M", "--socket"),
        ("serve", "memory:1M", "--tls-certificates"),
        ("serve", "memory:1M", "--tls-psk-file"),
        ("serve", "memory:1M", "--overlay"),
        ("serve", "memory:1M", "--cache", "1M", "--cache-path"),
        ("mount", "memory:1M", "--overlay"),
        ("mount", "memory:1M", "--identity"),
        ("mount", "memory:1M", "--scheduler"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("text", ["", " "])
def test_empty_text_is_refused(usage: Usage, words: tuple[str, ...], text: str) -> None:
    assert f"argument {words[-1]}: must not be empty" in usage(*words[:-1], f"{words[-1]}={text}")


@pytest.mark.parametrize("words", [("mount", "memory:1M", ""), ("unmount", "")])
def test_empty_name_of_a_device_is_refused(usage: Usage, words: tuple[str, ...]) -> None:
    assert "must not be empty" in usage(*words)


# Options that need, or exclude, others


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("mount memory:1M --cache-policy read", "add --cache SIZE to --cache-policy"),
        ("serve memory:1M --cache-policy write-through", "add --cache SIZE to --cache-policy"),
        ("serve memory:1M --cache-path file", "add --cache SIZE to --cache-path"),
        ("mount memory:1M --survive 9", "--survive needs --identity NAME"),
        ("mount memory:1M --replace", "--replace needs --identity NAME"),
        ("mount memory:1M --identity x --attach ioctl", "leave --attach ioctl out"),
        ("mount memory:1M --workers 2 --connections 2", "leave --connections out"),
        ("mount memory:1M /dev/ublkb0", "/dev/ublkb0 is a ublk device: add --attach ublk"),
        ("mount memory:1M /dev/ublkb0 --attach netlink", "or name /dev/nbdN"),
        ("mount memory:1M /dev/nbd0 --attach ublk", "/dev/nbd0 is no ublk device: name /dev/ubl"),
        ("mount memory:1M /dev/ublkb0p1 --attach ublk", "/dev/ublkb0p1 is no ublk device"),
        ("mount memory:1M ublkb0 --attach ublk", "ublkb0 is no ublk device: name /dev/ublkbN"),
        ("mount memory:1M --attach ublk --survive 9", "--survive needs --identity NAME"),
        ("mount memory:1M --attach ublk --workers 2", "ublk has no --workers: leave it out"),
        ("mount memory:1M --attach ublk --timeout 9", "ublk has no --timeout: leave it out"),
        ("mount memory:1M --attach ublk --connections 2", "has one queue: leave --connections"),
        ("mount memory:1M --workers 2 --cache 1M", "no --cache with --workers"),
        ("serve memory:1M --workers 2 --overlay o", "no --overlay with --workers"),
        ("serve a=memory:1M b=memory:1M --overlay o", "--overlay names one file"),
        (
            "serve a=memory:1M b=memory:1M --cache 1M --cache-path c",
            "--cache-path names one file",
        ),
        ("serve memory:1M --stdio --port 0", "exclude each other"),
        ("serve memory:1M --stdio --socket s", "exclude each other"),
        ("serve memory:1M --tls require", "TLS needs --tls-certificates DIRECTORY"),
        ("serve memory:1M --tls-verify-peer", "--tls-verify-peer needs --tls-certificates"),
        ("serve memory:1M --tls-psk-file k --tls-verify-peer", "--tls-verify-peer needs"),
        ("serve memory:1M --tls-psk-file k --tls-certificates d", "exclude each other"),
        ("serve memory:1M memory:1M", "there is more than one SPEC"),
        ("snapshot folder:d --drop", "snapshot name missing: add NAME"),
        ("clone folder:d folder:e", "snapshot missing: write folder:d?snapshot=NAME"),
        ("serve memory:1M?block_size=512 --block-size 4096", "and --block-size says 4096"),
        ("serve folder:d?block_size=512 --block-size 4096", "and --block-size says 4096"),
    ],
)
def test_options_that_do_not_go_together_are_refused(usage: Usage, words: str, reason: str) -> None:
    assert reason in usage(*words.split())
    assert list(Path().iterdir()) == []


# SPECs


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("memory:", "'' is no size"),
        ("memory: ", "' ' is no size"),
        ("memory:nan", "'nan' is no size"),
        ("memory:inf", "'inf' is no size"),
        ("memory:-1M", "'-1M' is no size"),
        ("memory:0", "size must be at least 1, not 0"),
        ("memory:100", "the size must be a multiple of 4096 bytes, not 100"),
        ("memory:9999999P", "is more than a disk can have"),
        (f"memory:{'9' * 5000}", "is no size"),
        ("memory:1M?block_size=", "'' is no size"),
        ("memory:1M?block_size=nan", "'nan' is no size"),
        ("memory:1M?block_size=3", "block_size must be a power of two from 1 to 65536, not 3"),
        ("memory:1M?block_size=0", "block_size must be a power of two from 1 to 65536, not 0"),
        ("memory:1M?block_size=512&block_size=512", "has block_size= twice"),
        ("memory:1M?block_size=512&sise=1", r"unknown options \(sise=1\); there is: block_size"),
        ("memory:1M?blocksize=512", r"unknown options \(blocksize=512\); there is: block_size"),
        ("memory:1M?size=3", r"unknown options \(size=3\); there is: block_size"),
        ("file:", "names no file; write file:PATH"),
        ("file:?block_size=512", "names no file; write file:PATH"),
        ("nbd://host:99999/disk", "cannot be used as an NBD URI: its port must be a number"),
        ("nbd://host:-1/disk", "cannot be used as an NBD URI: its port must be a number"),
        ("nbd:host", "// must follow nbd:"),
        ("nbd://host/disk?block_size=5", "block_size must be a power of two"),
        ("folder:d?size=1G&chunk_size=3", "chunk_size must be a power of two from 4096 to"),
        ("folder:d?size=1G&chunk_size=0", "chunk_size must be .*, not 0"),
        ("folder:d?size=1G&chunk_size=1P", "chunk_size must be .*, not 1125899906842624"),
        ("folder:d?size=1G&block_size=256", "block_size must be .* from 512 to 1048576, not 256"),
        ("folder:d?size=1G&block_size=2M", "block_size must be .* from 512 to 1048576"),
        ("folder:d?size=0", "size must be at least 1, not 0"),
        ("folder:d?size=nan", "'nan' is no size"),
        ("folder:d?size=", "'' is no size"),
        ("folder:d?size=1000", "the size must be a multiple of 4096 bytes, not 1000"),
        ("folder:d?snapshot=", "has a snapshot= without a name"),
        ("folder:d?compress=lz4", "compress= is yes or no"),
        ("folder:d?sise=1G", r"unknown options \(sise\)"),
        ("nothing", "'nothing' is no SPEC; write memory:SIZE"),
        ("ftp://host/disk.img", "'ftp://host/disk.img' is no SPEC; write memory:SIZE"),
    ],
)
def test_number_or_option_of_a_spec_that_cannot_be_is_refused(
    usage: Usage, spec: str, reason: str
) -> None:
    assert re.search(reason, usage("copy", spec, "file:target"))
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", ["disk.raw", "/dev/sdz", "./disk", "folder/disk.img", "there"])
def test_path_without_file_is_refused_with_how_to_write_it(usage: Usage, name: str) -> None:
    Path("there").touch()
    reason = f"{name!r} is no SPEC; for a file, write file:{name}"
    assert reason in usage("copy", name, "folder:disk")
    assert reason in usage("copy", "memory:1M", name)
    assert reason in usage("mount", name)
    assert reason in usage("serve", name, "--port", "0")


def test_path_with_a_colon_is_refused_with_how_to_write_it(usage: Usage) -> None:
    Path(".disk:1").touch()
    reason = "'.disk:1' is no SPEC; for a file, write file:.disk:1"
    assert reason in usage("copy", ".disk:1", "memory:1M")


# Options between arguments


@pytest.mark.parametrize(
    "words",
    [
        ["memory:1M", "/dev/nbd1", "--flag", "--number", "2"],
        ["memory:1M", "--flag", "/dev/nbd1", "--number", "2"],
        ["--flag", "memory:1M", "--number", "2", "/dev/nbd1"],
        ["--flag", "--number", "2", "memory:1M", "/dev/nbd1"],
    ],
)
def test_options_may_be_anywhere(words: list[str]) -> None:
    parser = ArgumentParser()
    command = parser.add_subparsers(parser_class=CommandParser).add_parser("mount")
    command.add_argument("spec")
    command.add_argument("path", nargs="?")
    command.add_argument("--flag", action="store_true")
    command.add_argument("--number", type=int)
    found = vars(parser.parse_args(["mount", *words]))
    assert found == {"spec": "memory:1M", "path": "/dev/nbd1", "flag": True, "number": 2}


def test_mount_takes_the_device_behind_an_option() -> None:
    for words in (["--read-only", "/dev/nbd1"], ["/dev/nbd1", "--read-only"]):
        parsed = cli.make_parser().parse_args(["mount", "memory:1M", *words])
        assert (parsed.spec, parsed.path, parsed.read_only) == ("memory:1M", "/dev/nbd1", True)


def test_specs_may_be_on_both_sides_of_an_option() -> None:
    words = ["serve", "a=memory:1M", "--port", "0", "b=memory:1M"]
    assert cli.make_parser().parse_args(words).specs == ["a=memory:1M", "b=memory:1M"]


def test_option_that_there_is_not_is_still_refused(usage: Usage) -> None:
    assert "unrecognized arguments: --hard" in usage("unmount", "/dev/nbd0", "--hard")
    assert "required: SPEC" in usage("mount", "--read-only")
