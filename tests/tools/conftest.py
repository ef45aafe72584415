"""What the tests of tools/ share: tools/ on the path, and a checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
sys.path.insert(0, str(TOOLS))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with three Pythons, and a cache of its own."""
    checkout = tmp_path / "checkout"
    for version in ("3.11", "3.12", "3.13"):
        (checkout / ".venvs" / version / "bin").mkdir(parents=True)
        (checkout / ".venvs" / version / "bin" / "python").symlink_to(sys.executable)
    for directory in ("tests/unit", "tests/kernel", "build/tests"):
        (checkout / directory).mkdir(parents=True)
    (checkout / "file").write_text("first\n")
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("AIOVBLK_CACHE", f"{tmp_path}/cache")
    for name in ("PYTHONS", "KERNELS", "GIT_DIR", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    (checkout / ".gitignore").write_text("/build/\n/.venvs\n")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "First"]):
        subprocess.run(["git", *command], check=True)
    return checkout
