"""The command line of tools/packages."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import version
from .console import PackagingError, say

ROOT = Path(__file__).resolve().parent.parent.parent

DESCRIPTION = """\
Build and check the packages: make packages makes the environment that this needs, and runs it.

    tools/packages                  all of them
    tools/packages python           sdist and wheel, checked as PyPI checks them
    tools/packages deb              packages for Debian 12 and 13, from that wheel
    tools/packages deb trixie       for one of them
    tools/packages tag v1.2.3       whether this checkout and the changelog are of that version;
                                    prints its changes
"""

EPILOG = """\
They are in dist/. Packages for Debian are built on Debian, with debhelper, in build/packages; they
bring the Python packages which that release has too old, as wheels from PyPI.

The exit status is 0, or 1 if a package cannot be built or is not as it should be.
"""


WORDS: dict[str, tuple[str, ...]] = {"python": (), "deb": ("bookworm", "trixie"), "tag": ()}
"""What may be built, and which words may follow."""


def main() -> int:
    """Run the command line and return the exit status."""
    options = parser().parse_args()
    check_words(options)
    python = ROOT / ".venv/bin/python"
    if not python.exists():
        say("there is no environment (.venv) yet: run make packages")
        return 1
    if Path(sys.prefix).resolve() != python.parent.parent.resolve():
        os.execv(python, [f"{python}", *sys.argv])
    os.chdir(ROOT)
    try:
        if options.kind == "tag":
            print(version.check_tag(ROOT, *options.words))
            return 0
        for path in build(options.kind, options.words, depends=options.depends):
            print(path)
    except PackagingError as error:
        say(f"{error}")
        return 1
    return 0


def build(kind: str, suites: Sequence[str], *, depends: bool) -> list[Path]:
    """Build what was asked for; return the files, relative to the checkout."""
    # What they import is in the environment, which --help does without.
    from . import debian, distributions

    dist = Path("dist")
    made = []
    if kind in ("all", "python"):
        wheel = distributions.build(ROOT, dist)
        made += sorted([*dist.glob("aiovblk-*.tar.gz"), wheel])
    if kind in ("all", "deb"):
        wheel = distributions.wheel_in(dist)
        wanted = [each for each in debian.RELEASES if not suites or each.suite in suites]
        work = Path("build/packages").absolute()
        for release in wanted:
            package = debian.build(ROOT, wheel.absolute(), release, work, dist)
            made.append(package)
            if depends:
                made.append(debian.download_depends(package, release, work).relative_to(ROOT))
    return made


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        "tools/packages",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", nargs="?", default="all", choices=["all", *WORDS])
    parser.add_argument(
        "words", nargs="*", metavar="SUITE | TAG", help="for deb: bookworm, trixie (default: both)"
    )
    parser.add_argument(
        "--depends",
        action="store_true",
        help="download what packages for Debian depend on, too, for the machines of tools/vm:"
        " build/packages/SUITE/install has all to be installed",
    )
    return parser


def check_words(options: argparse.Namespace) -> None:
    """Refuse words that the kind of packages does not have."""
    kind, words = options.kind, options.words
    if kind == "tag":
        if len(words) != 1:
            parser().error("tag takes one tag, such as v1.2.3")
    elif wrong := [word for word in words if word not in WORDS.get(kind, ())]:
        known = ", ".join(WORDS.get(kind, ())) or "no words"
        parser().error(f"{kind} takes {known}, not {wrong[0]}")
