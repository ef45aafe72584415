"""The code block of the page on recording changes, run as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...support.pages import blocks, run


async def test_block_shows_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    (block,) = blocks("docs/how-to/track-changes.md")
    await run(block)
    size = (1 << 20) - 8192 - 4096
    assert capsys.readouterr().out.splitlines() == [
        "8192 False",
        "4096 True",
        f"{size} False",
        "2026-05-01 4096",
    ]
