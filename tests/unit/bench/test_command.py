"""The benchmark's command line: what it chooses, refuses and exports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from argparse import Namespace
from pathlib import Path

import pytest

from bench import asking, native, pythons
from bench.__main__ import (
    DEFAULT_OUTPUT,
    QUICK_PEERS,
    choose_cases,
    choose_peers,
    command_line,
    matches,
    refuse,
)
from bench.cases import CASES, MAIN, READ
from bench.figures import LoadError
from bench.native import CompileError, build
from bench.peers import all_peers
from bench.peers.ours import SLICES, USERS, at_revision, with_options
from bench.pythons import ROOT, VERSIONS, Python, available, built_with_profile, find
from bench.revision import RevisionError, export, trees


def test_names_are_matched_by_any_part() -> None:
    assert matches("nbdkit memory", [])
    assert matches("nbdkit memory", ["qemu", "NBDKIT"])
    assert not matches("nbdkit memory", ["qemu"])


def test_page_names_the_command_that_makes_it() -> None:
    assert command_line([]) == "make bench"
    assert command_line(["--rounds", "3"]) == "make bench BENCH='--rounds 3'"


def test_quick_form_has_the_main_cases_and_few_peers() -> None:
    assert choose_cases([], quick=True) == list(MAIN)
    peers = [peer.name for peer in choose_peers(all_peers(), [], quick=True)]
    assert sorted(peers) == sorted(QUICK_PEERS)


def test_quick_form_has_the_other_revision_and_the_options_too() -> None:
    every = all_peers(ROOT, ("v1", ROOT), "--slow-request 1")
    peers = [peer.name for peer in choose_peers(every, [], quick=True)]
    more = {at_revision("v1"), at_revision("v1", USERS), at_revision("v1", SLICES)}
    assert set(peers) == {*QUICK_PEERS, *more, with_options("--slow-request 1")}


def test_options_are_those_of_a_server_s_command_line() -> None:
    [peer] = [each for each in all_peers(options="--slow-request 1") if "--slow" in each.name]
    for command in peer.commands.values():
        assert command[-2:] == ("--slow-request", "1")


def test_what_is_named_is_measured_in_either_form() -> None:
    assert choose_cases(["qd64, fio"], quick=True) == choose_cases(["qd64, fio"], quick=False)
    assert choose_cases([], quick=False) == list(CASES)
    assert [peer.name for peer in choose_peers(all_peers(), ["qemu"], quick=True)] == [
        "qemu-nbd, file in memory"
    ]


@pytest.mark.parametrize(
    ("output", "any_python", "unoptimized", "is_refused"),
    [
        (Path("docs"), False, ["3.13"], True),
        (Path("docs"), False, [], False),
        (Path("docs"), True, ["3.13"], False),
        (DEFAULT_OUTPUT, False, ["3.13"], False),
    ],
)
def test_figures_of_pythons_without_pgo_are_not_published(
    output: Path, any_python: bool, unoptimized: list[str], is_refused: bool
) -> None:
    refusal = refuse(Namespace(output=output, any_python=any_python), unoptimized)
    assert (refusal is not None) is is_refused
    if refusal:
        assert "Python 3.13 was built without PGO" in refusal
        assert "--any-python" in refusal


# Pythons


def test_python_says_by_its_configuration_whether_it_has_a_profile() -> None:
    assert built_with_profile({"CONFIG_ARGS": "'--enable-optimizations' '--with-lto'"}, "/opt/py")
    assert built_with_profile({"CONFIG_ARGS": "'--with-lto'"}, "/usr")
    assert not built_with_profile({"CONFIG_ARGS": "'--enable-shared'"}, "/root/.pyenv/3.13")
    assert not built_with_profile({}, "/usr/local")


def test_interpreter_tells_it_by_its_exit_status() -> None:
    done = subprocess.run([sys.executable, pythons.__file__], check=False)
    expected = built_with_profile(sysconfig.get_config_vars(), sys.base_prefix)
    assert (done.returncode == 0) is expected


def test_benchmark_s_own_environment_is_preferred(tmp_path: Path) -> None:
    assert find("3.13", tmp_path) is None
    plain = tmp_path / ".venvs/3.13/bin/python"
    plain.parent.mkdir(parents=True)
    plain.touch()
    assert find("3.13", tmp_path) == Python("3.13", (str(plain),), is_optimized=False)
    own = tmp_path / ".venvs/bench-3.13"
    (own / "bin").mkdir(parents=True)
    (own / "bin/python").touch()
    assert find("3.13", tmp_path) == Python("3.13", (str(own / "bin/python"),), is_optimized=True)
    (own / "root").symlink_to(tmp_path)
    found = find("3.13", tmp_path)
    assert found is not None
    assert found.command == (
        str(tmp_path / "tools/in-root"),
        str(tmp_path),
        str(own / "bin/python"),
    )
    assert available(tmp_path) == [found]
    assert "3.13" in VERSIONS


# Revisions, programs


def git(directory: Path, *words: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", *identity, *words], cwd=directory, check=True, capture_output=True)


def test_two_trees_are_copied_to_paths_of_the_same_length(tmp_path: Path) -> None:
    package = tmp_path / "aiovblk"
    (package / "__pycache__").mkdir(parents=True)
    (package / "a.py").write_text("old")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "old")
    (package / "a.py").write_text("new")
    (package / "__pycache__/stale.pyc").touch()
    this, other = tmp_path / "t/here", tmp_path / "t/then"
    python = Python("3.x", (sys.executable,), is_optimized=False)
    for _ in range(2):  # the second time over the first
        export("HEAD", [python], tmp_path, this, other)
    assert (this / "aiovblk/a.py").read_text() == "new"
    assert (other / "aiovblk/a.py").read_text() == "old"
    for folder in (this, other):
        [compiled] = (folder / "aiovblk/__pycache__").iterdir()
        assert compiled.name.startswith("a.")
    ours, found = trees("HEAD")
    assert found is not None
    assert len(str(ours)) == len(str(found[1]))
    assert trees(None) == (ROOT, None)
    with pytest.raises(RevisionError, match="git has nothing at nowhere"):
        export("nowhere", [], tmp_path, this, other)


def test_program_is_compiled_once_and_again_when_a_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("cc") is None:
        pytest.skip(f"no C compiler: install {native.PACKAGE}")
    program = tmp_path / "built/p"
    source = tmp_path / "p.c"
    source.write_text("int main(void) { return 0; }")
    monkeypatch.setattr(native, "HERE", tmp_path)
    monkeypatch.setattr(native, "HEADERS", ())
    monkeypatch.setitem(native.SOURCES, program, ("p.c",))
    first = build(program).stat()
    assert build(program).stat().st_ino == first.st_ino
    source.write_text("int main(void) { return ")
    newer = int(first.st_mtime) + 10
    os.utime(source, (newer, newer))
    with pytest.raises(CompileError, match=r"p\.c"):
        build(program)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompileError, match="install gcc"):
        build(program)


# Clients


def test_clients_tell_the_same_json_as_loadgen_without_latencies() -> None:
    told = json.dumps({"requests": 1000, "seconds": 0.25, "client_cpu": 0.01})
    found = asking.parse(told, READ, server_seconds=0.002)
    assert (found.client_cpu, found.server_cpu, found.iops) == (10.0, 2.0, 4000.0)
    for output in ("", "[]", "nbdcopy: no"):
        with pytest.raises(LoadError, match="not what a client usually says"):
            asking.parse(output, READ)
