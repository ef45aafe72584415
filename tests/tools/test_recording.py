"""tools/recording.py: the demo as a picture and as a cast."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import recording
from recording import MAX_PAUSE, Line, cast, picture, record

LINES = [Line(0.25, "A disk:"), Line(0.5, "# xxd <disk> | head"), Line(60.5, "00: dead & beef")]


def test_record_keeps_each_line_and_the_status() -> None:
    code = "import sys; print('first'); print(); print('# third'); sys.exit(3)"
    lines, status = record([sys.executable, "-c", code])
    assert [line.text for line in lines] == ["first", "", "# third"]
    assert [line.is_command for line in lines] == [False, False, True]
    assert sorted(line.time for line in lines) == [line.time for line in lines]
    assert status == 3


def test_cast_has_a_header_and_an_event_for_each_line() -> None:
    header, *events = map(json.loads, cast(LINES, "make demo").splitlines())
    assert (header["version"], header["title"]) == (2, "make demo")
    assert [data for _, kind, data in events if kind == "o"] == [
        "A disk:\r\n",
        "\x1b[1m# xxd <disk> | head\x1b[0m\r\n",
        "00: dead & beef\r\n",
    ]


def test_cast_cuts_long_pauses() -> None:
    _, *events = map(json.loads, cast(LINES, "make demo").splitlines())
    assert [at for at, *_ in events] == [0.25, 0.5, 0.5 + MAX_PAUSE]


def test_picture_is_svg_that_shows_all_lines_and_fetches_nothing() -> None:
    text = picture(LINES, "make demo")
    drawn = "".join(ElementTree.fromstring(text).itertext()).replace("\xa0", " ")
    for expected in ("make demo", *(line.text for line in LINES)):
        assert expected in drawn
    assert text.count("http") == 1  # the name space
    assert "xmlns" in text


def test_demo_that_fails_leaves_the_recordings_of_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "docs").mkdir()
    demo = tmp_path / "tools/demo"
    demo.write_text("#!/bin/sh\necho words: $*\nexit $#\n")
    demo.chmod(0o755)
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["recording.py", "s3"])
    assert recording.main() == 1
    assert list((tmp_path / "docs").iterdir()) == []
    monkeypatch.setattr(sys, "argv", ["recording.py"])
    assert recording.main() == 0
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == ["demo.cast", "demo.svg"]
