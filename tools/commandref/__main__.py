"""``python -m commandref man FOLDER``, or ``completion FOLDER``, with tools/ on the path."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Write what was asked for, and print the paths of the files."""
    parser = argparse.ArgumentParser(prog="commandref", description=__doc__)
    parser.add_argument("what", choices=["man", "completion"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "man":
        from .manual import write_manuals as write
    else:
        from .completion import write_completions as write
    for path in write(arguments.folder):
        print(path)


if __name__ == "__main__":
    main()
