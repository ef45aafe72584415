"""tools/packages: what packages bring, versions and tags; and the metadata of the project."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from release import cli, debian, requirements, version
from release.console import PackagingError

from .conftest import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS: dict[str, object] = {
    "name": "aiovblk",
    "version": "1.0",
    "requires_dist": [
        "anyio>=4.4; python_version < '3.14'",
        "anyio>=4.10; python_version >= '3.14'",
        "uvloop>=0.23",
        "aiohttp>=3.10; extra == 'http'",
        "boto3>=1.34; extra == 'aws'",
    ],
}
ANYIO: dict[str, object] = {
    "name": "anyio",
    "version": "4.16",
    "requires_dist": ["idna>=2.8", "typing_extensions>=4.5; python_version < '3.13'"],
}
OTHERS: list[dict[str, object]] = [
    {"name": "uvloop", "version": "0.23"},
    {"name": "idna", "version": "3.20", "requires_dist": ["ruff>=0.6; extra == 'all'"]},
    {"name": "typing_extensions", "version": "4.16"},
    {"name": "aiohttp", "version": "3.14", "requires_dist": ["attrs>=17.3", "yarl>=1.17,<2"]},
    {"name": "attrs", "version": "26.1"},
    {"name": "yarl", "version": "1.25", "requires_dist": ["idna>=3.0"]},
]


def plan(has: dict[str, str], python: str = "3.11") -> requirements.Plan:
    """What a release with these Debian packages is left with, and what is brought."""
    return requirements.plan(requirements.needs([OURS, ANYIO, *OTHERS], python), has.get)


def brought(chosen: requirements.Plan) -> list[str]:
    return [need.name for need in chosen.brought]


NEW = {
    "python3-anyio": "4.8.0-3",
    "python3-uvloop": "0.23.0+ds1-2",
    "python3-aiohttp": "3.11.16-1",
    "python3-idna": "3.3-1",
    "python3-typing-extensions": "4.4.0-1",
    "python3-attr": "22.2.0-1",
    "python3-yarl": "1.8.2-1",
}


def test_what_debian_has_new_enough_is_left_to_it() -> None:
    chosen = plan(NEW)
    assert brought(chosen) == []
    assert chosen.depends == ["python3-anyio (>= 4.4)", "python3-uvloop (>= 0.23)"]
    assert chosen.recommends == ["python3-aiohttp (>= 3.10)"]


def test_what_debian_has_too_old_is_brought() -> None:
    chosen = plan(NEW | {"python3-uvloop": "0.17.0+ds1-2+b2"})
    assert brought(chosen) == ["uvloop"]
    assert chosen.depends == ["python3-anyio (>= 4.4)"]


def test_what_debian_does_not_have_is_brought() -> None:
    assert brought(plan({each: NEW[each] for each in NEW if "uvloop" not in each})) == ["uvloop"]


def test_what_is_brought_brings_what_it_needs() -> None:
    chosen = plan(NEW | {"python3-anyio": "3.6.2-1", "python3-aiohttp": "3.8.4-1"})
    # yarl is too old for the new aiohttp, typing_extensions for the new anyio; attrs is not.
    assert brought(chosen) == ["aiohttp", "anyio", "typing-extensions", "yarl"]
    assert chosen.depends == ["python3-idna (>= 3.0)", "python3-uvloop (>= 0.23)"]
    assert chosen.recommends == ["python3-attr (>= 17.3)"]


def test_what_another_python_would_need_is_not_asked_for() -> None:
    chosen = plan(NEW | {"python3-anyio": "3.6.2-1"}, python="3.13")
    assert brought(chosen) == ["anyio"]


@pytest.mark.parametrize(
    ("debian_version", "expected"),
    [
        ("1:0.17.0+ds1-2+b2", "0.17.0"),
        ("4.8.0-3", "4.8.0"),
        ("38.0.4-3+deb12u1", "38.0.4"),
        ("3.10~rc1-1", "3.10"),
        ("1.2", "1.2"),
    ],
)
def test_version_of_upstream_is_found_in_debians(debian_version: str, expected: str) -> None:
    assert requirements.upstream_version(debian_version) == Version(expected)


def test_version_that_is_none_is_not_taken_for_one() -> None:
    assert requirements.upstream_version("") is None
    assert requirements.upstream_version("snapshot-1") is None


def test_package_is_for_the_python_of_its_release() -> None:
    chosen = requirements.Plan([], ["python3-anyio (>= 4.4)"], ["python3-rich"])
    for release in debian.RELEASES:
        text = debian.substvars(chosen, release)
        assert f"python3 (>= {release.python}), python3 (<< {release.next_python})" in text
        assert "python3-anyio (>= 4.4)\n" in text
        assert "aiovblk:Recommends=python3-rich\n" in text
    assert [each.next_python for each in debian.RELEASES] == ["3.12", "3.14"]


def test_extras_of_the_package_are_extras_of_the_project() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(requirements.EXTRAS.split(",")) <= set(extras)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "aiovblk").mkdir()
    (tmp_path / "aiovblk/__init__.py").write_text('"""Text."""\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n"
        "## [1.2.3] - 2026-01-02\n\n### Added\n\n* This.\n\n"
        "## [1.2.2] - 2025-12-01\n\n### Fixed\n\n* That.\n"
    )
    return tmp_path


def test_tag_of_the_version_tells_its_changes(checkout: Path) -> None:
    assert version.check_tag(checkout, "v1.2.3") == "### Added\n\n* This."


@pytest.mark.parametrize("tag", ["v1.2.4", "1.2.3", ""])
def test_other_tag_is_refused(checkout: Path, tag: str) -> None:
    with pytest.raises(PackagingError, match=r"change __version__ .* or tag v1\.2\.3"):
        version.check_tag(checkout, tag)


def test_version_without_a_dated_heading_is_refused(checkout: Path) -> None:
    text = (checkout / "CHANGELOG.md").read_text()
    (checkout / "CHANGELOG.md").write_text(text.replace(" - 2026-01-02", ""))
    with pytest.raises(PackagingError, match=r"needs `## \[1\.2\.3\] - YYYY-MM-DD`"):
        version.check_tag(checkout, "v1.2.3")


def test_version_of_which_nothing_is_told_is_refused(checkout: Path) -> None:
    text = (checkout / "CHANGELOG.md").read_text()
    (checkout / "CHANGELOG.md").write_text(text.replace("### Added\n\n* This.\n\n", ""))
    with pytest.raises(PackagingError, match="tells nothing"):
        version.check_tag(checkout, "v1.2.3")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["deb", "sid"], "deb takes bookworm, trixie, not sid"),
        (["python", "trixie"], "python takes no words, not trixie"),
        (["tag"], "tag takes one tag"),
    ],
    ids=" ".join,
)
def test_wrong_words_are_errors_of_usage(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.check_words(cli.parser().parse_args(words))
    assert reason in capsys.readouterr().err


# The project's metadata


def test_urls_have_one_home() -> None:
    urls = PROJECT["project"]["urls"]
    home = urls["Source"]
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= set(urls)
    raw = home.replace("https://github.com", "https://raw.githubusercontent.com")
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    replaced = [
        re.search(r"\]\((\S+?)/(?:blob/)?v\$", each["replacement"])
        for each in hook["substitutions"]
    ]
    assert [found[1] if found else "" for found in replaced] == [raw, home]
    assert all(url.startswith(home) for url in urls.values())
    assert f"Homepage: {home}\n" in (ROOT / "packaging/debian/control").read_text()


SECTIONS = ("Added", "Changed", "Deprecated", "Removed", "Security", "Fixed")


def test_changelog_has_the_form_of_keep_a_changelog() -> None:
    first, *versions = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert "keepachangelog.com" in first
    assert versions[0].startswith("[Unreleased]\n")
    assert all(version.HEADING.match(f"## {each.splitlines()[0]}") for each in versions[1:])
    for each in versions:
        _, *sections = re.split(r"^### ", each, flags=re.MULTILINE)
        names = [section.splitlines()[0] for section in sections]
        assert names == [name for name in SECTIONS if name in names]
        for section in sections:
            lines = [line for line in section.splitlines()[1:] if line]
            assert lines
            assert [line for line in lines if not line.startswith(("* ", "  "))] == []


def test_lower_bounds_are_given() -> None:
    groups = PROJECT["project"]["optional-dependencies"]
    for text in chain(PROJECT["project"]["dependencies"], *groups.values()):
        requirement = Requirement(text)
        typing_only = requirement.name.startswith("types-") or requirement.name == "aiovblk"
        assert typing_only or any(each.operator == ">=" for each in requirement.specifier), text
