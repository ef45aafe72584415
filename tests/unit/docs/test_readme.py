"""The README: short, and it leads on to those who use and those who change the package."""

from __future__ import annotations

from ...support.pages import ROOT

README = (ROOT / "README.md").read_text()


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_readme_leads_on() -> None:
    for page in ("docs/index.md", "docs/architecture.md", "CONTRIBUTING.md", "SECURITY.md"):
        assert f"]({page})" in README
