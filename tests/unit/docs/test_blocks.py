"""Every Python block of every page is executed by a test, which is counted here."""

from __future__ import annotations

import re
from collections import Counter

import pytest

import aiovblk

from ...support.pages import ROOT, all_blocks, blocks, pages

EXECUTED = {
    "README.md": 3,  # two of them in tests/kernel/test_readme.py
    "docs/how-to/back-up-changed-blocks.md": 2,
    "docs/how-to/cache.md": 5,
    "docs/how-to/choose.md": 1,
    "docs/how-to/connect.md": 2,
    "docs/how-to/dashboard.md": 1,
    "docs/how-to/debug-a-hang.md": 1,
    "docs/how-to/embed.md": 1,
    "docs/how-to/events.md": 2,
    "docs/how-to/layers.md": 3,
    "docs/how-to/metrics.md": 3,
    "docs/how-to/object-stores.md": 2,
    "docs/how-to/overlays.md": 5,
    "docs/how-to/resize.md": 1,
    "docs/how-to/serve.md": 1,
    "docs/how-to/survive-a-crash.md": 1,
    "docs/how-to/test-a-device.md": 2,
    "docs/how-to/tls.md": 1,
    "docs/how-to/track-changes.md": 1,
    "docs/how-to/ublk.md": 1,
    "docs/how-to/upgrade.md": 1,
    "docs/how-to/web-server-image.md": 1,
    "docs/how-to/workers.md": 4,
    "docs/how-to/write-a-layer.md": 3,
}
"""How many Python blocks of each page a test executes."""

PLAYED = {
    "docs/how-to/back-up-changed-blocks.md",
    "docs/start/bucket.md",
    "docs/start/fastapi.md",
    "docs/start/first-disk.md",
}
"""Pages whose files and commands are played: tests of their own here, and in tests/kernel."""


def test_no_block_is_left_out() -> None:
    found = Counter({page: len(blocks(page)) for page in pages()})
    assert dict(+found) == EXECUTED


@pytest.mark.parametrize("page", pages())
def test_files_and_commands_are_played(page: str) -> None:
    if page not in PLAYED and page != "docs/index.md":
        assert not [each for each in all_blocks(page) if each.file or each.language == "console"]


async def test_the_first_page_shows_the_device_of_the_readme() -> None:
    (shown,) = [each.text for each in all_blocks("docs/index.md") if each.file]
    names: dict[str, type[aiovblk.BlockDevice]] = {}
    exec(shown, names)
    device = names["Deadbeef"]()
    assert await device.read(1024, 4) == b"\xde\xad\xbe\xef"
    definition = re.search(r"class Deadbeef.*?\n\n\n", shown, re.DOTALL)
    assert definition is not None
    assert definition[0] in (ROOT / "README.md").read_text()
