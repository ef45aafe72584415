"""Record the demo: run it, and write what it showed as a picture and as a cast for asciinema.

    .venv/bin/python tools/recording.py                     docs/demo.svg and docs/demo.cast
    .venv/bin/python tools/recording.py --name demo-s3 s3

A demo that fails leaves the recordings of before, and ends with its exit status.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WIDTH = 108
"""Columns of the terminal that is drawn; longer lines are wrapped."""

MAX_PAUSE = 1.5
"""Seconds that nothing happens in the cast, at most: an emulated machine takes its time."""

PICTURE = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
  <style>
    .{unique_id}-matrix {{
      font-family: "Fira Code", "DejaVu Sans Mono", Menlo, Consolas, monospace;
      font-size: {char_height}px;
      line-height: {line_height}px;
    }}
    .{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
    {styles}
  </style>
  <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
  </defs>
  {chrome}
  <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
  </g>
</svg>
"""
"""rich's own picture, without the fonts that it has a browser fetch from elsewhere."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line that the demo printed."""

    time: float
    """Seconds since the demo began."""
    text: str
    """Without its end."""

    @property
    def is_command(self) -> bool:
        """Whether it is a command of the demo's shell."""
        return self.text.startswith("# ")


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description="Record the demo as docs/NAME.svg and .cast.")
    parser.add_argument("--name", default="demo", help="of the files (default %(default)s)")
    parser.add_argument("words", nargs="*", help="for tools/demo: s3")
    options = parser.parse_args()
    lines, status = record([str(ROOT / "tools/demo"), *options.words])
    if status:
        return status
    title = " ".join(["make", "-".join(["demo", *options.words])])
    for path, text in (
        (ROOT / f"docs/{options.name}.cast", cast(lines, title)),
        (ROOT / f"docs/{options.name}.svg", picture(lines, title)),
    ):
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


def record(command: Sequence[str]) -> tuple[list[Line], int]:
    """Run a command, and show what it prints; return its lines and its exit status."""
    began = time.monotonic()
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # because it is a pipe
        for raw in process.stdout:
            print(raw, end="", flush=True)
            lines.append(Line(time.monotonic() - began, raw.rstrip("\n")))
    return lines, process.returncode


def cast(lines: Iterable[Line], title: str) -> str:
    """Return a cast in asciinema's format, version 2: a header and an event for each line."""
    header = {
        "version": 2,
        "width": WIDTH,
        "height": 30,
        "title": title,
        "idle_time_limit": MAX_PAUSE,
        "env": {"TERM": "xterm-256color"},
    }
    now = before = 0.0
    events: list[object] = [header]
    for line in lines:
        now += min(line.time - before, MAX_PAUSE)
        before = line.time
        events.append([round(now, 3), "o", f"{_styled(line)}\r\n"])
    return "".join(f"{json.dumps(event)}\n" for event in events)


def _styled(line: Line) -> str:
    """Return a line with escape sequences: commands are bold."""
    return f"\x1b[1m{line.text}\x1b[0m" if line.is_command else line.text


def picture(lines: Sequence[Line], title: str) -> str:
    """Return an SVG of a terminal that shows all the lines."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=WIDTH, record=True, file=StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text(line.text, "bold green" if line.is_command else ""), soft_wrap=False)
    return console.export_svg(title=title, code_format=PICTURE, unique_id="demo")


if __name__ == "__main__":
    sys.exit(main())
