"""Build and check the sdist and the wheel."""

import sys
from pathlib import Path

from .console import PackagingError, run, say


def build(root: Path, into: Path) -> Path:
    """Build the sdist of the checkout `root`, and the wheel from that sdist; return the wheel.

    So the sdist is known to have all that the wheel needs. Both are checked: their metadata are
    valid, and PyPI can show the description (``twine check --strict``).

    Raises:
        PackagingError: a package cannot be built, or is not as PyPI wants it.
    """
    for module in ("build", "twine"):
        require(module)
    into.mkdir(parents=True, exist_ok=True)
    for old in [*into.glob("aiovblk-*.tar.gz"), *into.glob("aiovblk-*.whl")]:
        old.unlink()
    say("building the sdist, and the wheel from it")
    run([sys.executable, "-m", "build", "--outdir", into, root])
    made = sorted([*into.glob("aiovblk-*.tar.gz"), *into.glob("aiovblk-*.whl")])
    run([sys.executable, "-m", "twine", "check", "--strict", *made])
    return wheel_in(into)


def wheel_in(directory: Path) -> Path:
    """Return the wheel that was built into `directory`.

    Raises:
        PackagingError: there is not exactly one.
    """
    wheels = sorted(directory.glob("aiovblk-*.whl"))
    if len(wheels) != 1:
        raise PackagingError(f"{len(wheels)} wheels in {directory}: run tools/packages python")
    return wheels[0]


def require(module: str) -> None:
    """Check that a module of the extra `packages` is there.

    Raises:
        PackagingError: it is not; says how to install it.
    """
    try:
        __import__(module)
    except ModuleNotFoundError:
        raise PackagingError(
            f"{module} is not installed: run make packages, which installs it"
        ) from None
