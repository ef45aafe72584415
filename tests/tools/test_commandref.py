"""Manual pages and completions, as they are made from the parser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from commandref import commands, completion, manual

from aiovblk.cli import COMMANDS


def program(name: str) -> str:
    """Return the path of a program; skip the test where there is none."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The manual pages, by name."""
    written = manual.write_manuals(tmp_path_factory.mktemp("man"))
    return {path.name: path.read_text() for path in written}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The completions, by shell."""
    written = completion.write_completions(tmp_path_factory.mktemp("completion"))
    return {path.parent.name: path for path in written}


def test_every_command_has_a_page_with_all_of_its_options(pages: dict[str, str]) -> None:
    assert set(pages) == {"aiovblk.1", *(f"aiovblk-{name}.1" for name in COMMANDS)}
    for page in commands.pages():
        text = pages[f"{page.name.replace(' ', '-')}.1"]
        for _, _, actions in commands.groups(page.parser):
            for action in actions:
                for option in action.option_strings:
                    assert manual.escape(option) in text
        for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "ENVIRONMENT", "EXIT STATUS"):
            assert f'.SH "{heading}"' in text


def test_every_command_has_an_example(pages: dict[str, str]) -> None:
    for name in COMMANDS:
        assert f"aiovblk {name}" in pages[f"aiovblk-{name}.1"].partition('"EXAMPLES"')[2]


def test_page_of_the_whole_lists_commands_and_variables(pages: dict[str, str]) -> None:
    text = pages["aiovblk.1"]
    for name in COMMANDS:
        assert f"aiovblk\\-{name}(1)" in text
    for variable in ("AIOVBLK_LOG_LEVEL", "AIOVBLK_LOOP", "AIOVBLK_KEY_FILE"):
        assert variable in text


def test_page_of_serve_has_the_exit_status_of_its_command(pages: dict[str, str]) -> None:
    def statuses(page: str) -> str:
        return pages[page].partition('"EXIT STATUS"')[2].partition(".SH")[0]

    assert "128 and the number of the signal" in statuses("aiovblk-serve.1")
    assert "128" not in statuses("aiovblk-mount.1")


def test_characters_of_roff_are_escaped() -> None:
    assert manual.escape(r".a-b\c") == r"\&.a\-b\ec"
    assert manual.escape("'quoted'") == r"\&'quoted'"


def test_date_is_that_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert '"1970-01-02"' in next(manual.roff(next(commands.pages())))


def test_pages_are_free_of_warnings(pages: dict[str, str], tmp_path: Path) -> None:
    mandoc = program("mandoc")
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
        lint = [mandoc, "-T", "lint", "-W", "warning", str(tmp_path / name)]
        done = subprocess.run(lint, capture_output=True, text=True, check=False)
        assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("shell", completion.FILES)
def test_completion_is_accepted_by_its_shell(shell: str, scripts: dict[str, Path]) -> None:
    subprocess.run([program(shell), "-n", str(scripts[shell])], check=True)


BASH = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
cur=${COMP_WORDS[COMP_CWORD]}
_shtab_aiovblk aiovblk "$cur" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mou", "mount"),
        ("mount mem", "memory:"),
        ("copy memory:1M fold", "folder:"),
        ("info s3", "s3://"),
        ("mount --attach ", "auto ioctl netlink ublk"),
        ("serve --layer re", "retry read-only"),
        ("serve --cache-po", "--cache-policy"),
    ],
)
def test_bash_completes(
    words: str, expected: str, scripts: dict[str, Path], tmp_path: Path
) -> None:
    line = ["aiovblk", *words.split(" ")]
    command = [program("bash"), "-c", BASH, "bash", str(scripts["bash"]), *line]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert set(done.stdout.split()) == set(expected.split())


def test_fish_completes(scripts: dict[str, Path], tmp_path: Path) -> None:
    fish = program("fish")
    for line, expected in {
        "aiovblk mou": "mount",
        "aiovblk serve --cache-po": "--cache-policy",
    }.items():
        script = f"source {scripts['fish']}; complete -C '{line}'"
        done = subprocess.run(
            [fish, "-N", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert expected in done.stdout.split()
