"""The fuzzer itself, and what it has found so far."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from ...fuzz import __main__ as fuzzer
from ...fuzz.seeds import SEEDS
from ...fuzz.targets import TARGETS

each_target = pytest.mark.parametrize("name", TARGETS)


@each_target
def test_kept_corpus(name: str) -> None:
    paths = fuzzer.kept(name)
    assert paths
    for path in paths:
        try:
            TARGETS[name](path.read_bytes())
        except BaseException as exc:
            exc.add_note(f"with {path}")
            raise


@each_target
def test_seeds(name: str) -> None:
    for seed in SEEDS[name]():
        TARGETS[name](seed)


@each_target
def test_chance_finds_nothing_in_a_few_inputs(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fuzzer.fuzz_by_chance(name, 200)
    assert f"{name}: 200 inputs" in capsys.readouterr().out


def test_input_that_fails_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_on_long_ones(data: bytes) -> None:
        if len(data) > 1000:
            raise ZeroDivisionError

    monkeypatch.setattr(fuzzer, "FOUND", tmp_path)
    monkeypatch.setitem(TARGETS, "requests", fails_on_long_ones)
    with pytest.raises(ZeroDivisionError):
        fuzzer.fuzz_by_chance("requests", 10_000)
    assert len((tmp_path / "requests-crash").read_bytes()) > 1000


def test_chance_is_the_same_each_time() -> None:
    known = list(SEEDS["requests"]())
    first, second = (
        [fuzzer.mutate(random, known) for _ in range(50)] for random in (Random(1), Random(1))
    )
    assert first == second
