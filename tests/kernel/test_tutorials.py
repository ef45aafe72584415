"""The tutorials of the site, played from the first line to the last as root."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support import console
from .support import sh

# They start new interpreters and servers, as their readers do.
pytestmark = [pytest.mark.deadline(3600), pytest.mark.one_loop, pytest.mark.newest_python]


@pytest.mark.parametrize("page", ["first-disk", "bucket", "fastapi"])
async def test_a_tutorial_is_followed_to_its_end(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PATIENCE", 900.0)  # to end what hangs, in an emulated machine
    try:
        assert await console.play(f"docs/start/{page}.md", tmp_path, root=True) >= 10
    finally:
        await sh(f"umount -l {tmp_path}/data {tmp_path}/notes", ok=False)
