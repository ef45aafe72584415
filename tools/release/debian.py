"""Build the package for a Debian release, from packaging/debian and a wheel.

The command and the Python packages that this release has too old are in /usr/lib/aiovblk, which
no other program searches; of the others the package depends.
"""

import email.utils
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from suite import environments
from vmrun import apt, roots
from vmrun.console import VMError

from .console import PackagingError, run, say
from .requirements import Need, Plan, plan, resolve


@dataclass(frozen=True, slots=True)
class Release:
    """A Debian release."""

    suite: str
    number: int
    python: str
    """The version of its python3."""

    @property
    def next_python(self) -> str:
        """The first version of Python for which its extension modules are not made."""
        major, minor = self.python.split(".")
        return f"{major}.{int(minor) + 1}"


RELEASES = (Release("bookworm", 12, "3.11"), Release("trixie", 13, "3.13"))

PRIVATE = "/usr/lib/aiovblk"
"""Where the modules are, once installed."""

PROGRAMS = {"dh": "debhelper", "dpkg-buildpackage": "dpkg-dev"}

FILES = (
    "aiovblk@.service",
    "aiovblk-serve@.service",
    "aiovblk-serve@.socket",
    "60-aiovblk.rules",
    "udev/59-ublk-users.rules",
    "udev/ublk-owner",
)
"""What packaging/ has beside debian/, and debian/rules installs."""


def build(root: Path, wheel: Path, release: Release, work: Path, into: Path) -> Path:
    """Build the package; return it.

    Args:
        root: the checkout.
        wheel: what was built from it.
        release: the Debian release to build for. This system may be another one.
        work: a directory to build in; what it has for this release is replaced.
        into: where the package goes.

    Raises:
        PackagingError: a program, or Python of that version, is missing, or the build failed.
    """
    missing = sorted({package for name, package in PROGRAMS.items() if not shutil.which(name)})
    if missing:
        raise PackagingError(f"apt-get install {' '.join(missing)}: needed to build for Debian")
    python = interpreter(release)
    tree = work / release.suite / "aiovblk"
    shutil.rmtree(tree.parent, ignore_errors=True)
    shutil.copytree(root / "packaging" / "debian", tree / "debian")
    for name in FILES:
        shutil.copy(root / "packaging" / name, tree)
    document(root, tree)
    say(f"finding out what Debian {release.suite} has too old")
    archive = Archive(release.suite, work / "apt")
    chosen = plan(resolve(python, wheel, release.python), archive.version)
    say(f"bringing {' '.join(f'{each.name} {each.version}' for each in chosen.brought)}")
    install(python, wheel, chosen.brought, tree / "lib")
    version = wheel.name.split("-")[1]
    (tree / "debian" / "changelog").write_text(changelog(version, release, date(root)))
    (tree / "debian" / "relations").write_text(substvars(chosen, release))
    say(f"building the package for Debian {release.number}")
    run(["dpkg-buildpackage", "--build=binary", "--no-sign"], directory=tree)
    (made,) = tree.parent.glob("aiovblk_*.deb")
    into.mkdir(parents=True, exist_ok=True)
    shutil.copy(made, into)
    return into / made.name


def download_depends(package: Path, release: Release, work: Path) -> Path:
    """Download what a package depends on and the test machine of its release does not have.

    Returns:
        The directory with them and the package itself, to be installed with ``dpkg -i``.

    Raises:
        PackagingError: the machine cannot be made, or they cannot be had.
    """
    into = work / release.suite / "install"
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    try:
        root = roots.get({suite: kernel for kernel, suite in roots.SUITES.items()}[release.suite])
    except VMError as error:
        raise PackagingError(f"{error}") from None
    archive = Archive(release.suite, work / "apt")
    archive.download_missing(package.absolute(), root, into)
    shutil.copy(package, into)
    return into


def document(root: Path, tree: Path) -> None:
    """Make the man pages and the shells' completion, by the tool that has the command's parser."""
    variables = os.environ | {"PYTHONPATH": f"{root / 'tools'}", "SOURCE_DATE_EPOCH": date(root)}
    for kind in ("man", "completion"):
        run(
            [sys.executable, "-m", "commandref", kind, tree / kind],
            directory=root,
            variables=variables,
        )


def date(root: Path) -> str:
    """Return the seconds since the epoch of the commit, 0 for what is no checkout of git."""
    command = ["git", "-C", f"{root}", "log", "-1", "--format=%ct"]
    return (
        subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "0"
    )


def interpreter(release: Release) -> Sequence[str]:
    """Return the command for a Python of the release's version, with pip.

    Raises:
        PackagingError: there is no environment with it.
    """
    if release.python not in environments.available():
        raise PackagingError(
            f"Debian {release.suite} has Python {release.python}, for which there is no"
            f" environment here: make test-all, or tools/setup all"
        )
    return environments.python(release.python)


def install(python: Sequence[str], wheel: Path, brought: Sequence[Need], into: Path) -> None:
    """Install the wheel, and what it brings, into a directory of their own, and compile them."""
    pins = [f"{each.name}=={each.version}" for each in brought]
    run(
        [
            *(*python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary=:all:", "--no-compile", "--target", f"{into}"),
            *(f"{wheel}", *pins),
        ]
    )
    shutil.rmtree(into / "bin", ignore_errors=True)  # commands, which are not for the package
    for record in into.glob("*.dist-info/direct_url.json"):
        record.unlink()  # says where our wheel lay
    # Compiled here and not when it is installed: the package is for one Python alone. Unchecked, as
    # the modules of a package do not change; so their times do not matter, which dpkg sets.
    run(
        [
            *(*python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"),
            *("-s", f"{into}", "-p", PRIVATE, f"{into}"),
        ]
    )


class Archive:
    """The package lists of a Debian release, as its mirror has them now."""

    def __init__(self, suite: str, state: Path) -> None:
        sources = list(apt.sources_for(suite))
        if not sources:
            raise PackagingError("the versions of Debian's packages are known on Debian only")
        suffix, text = sources[0]
        home = state / suite
        for directory in ("lists", "archives"):
            (home / directory / "partial").mkdir(parents=True, exist_ok=True)
        source = home / f"source{suffix}"
        source.write_text(text)
        self._apt = apt.Apt((*apt.options_for(home, source), *EMPTY_STATUS))
        self._apt.update()
        if self.version("python3") is None:
            raise PackagingError(f"the package list of Debian {suite} could not be fetched")

    def version(self, package: str) -> str | None:
        """Return the version of a package, None if the release has none of that name."""
        line = self._apt.query("madison", package).partition("\n")[0]
        return line.split("|")[1].strip() if line else None

    def download_missing(self, package: Path, root: Path, into: Path) -> list[Path]:
        """Download what a package depends on and a system does not have.

        Args:
            package: a file.
            root: the root directory of the system.
            into: an empty directory.

        Returns:
            The files.

        Raises:
            PackagingError: the release has not all of it, or apt could not fetch it.
        """
        status = ("-o", f"Dir::State::status={root}/var/lib/dpkg/status")
        options = [*self._apt.options[: -len(EMPTY_STATUS)], *status]
        installing = ("install", "--simulate", "--no-install-recommends", f"{package}")
        plan = run(["apt-get", *options, *installing])
        names = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
        wanted = [f"{each}" for each in names if each != "aiovblk"]
        if wanted:
            run(["apt-get", "download", "-qq", *options, *wanted], directory=into)
        return sorted(into.glob("*.deb"))


EMPTY_STATUS = ("-o", "Dir::State::status=/dev/null")
"""For apt: nothing is installed, so that it looks at the release alone."""


def changelog(version: str, release: Release, seconds: str) -> str:
    """Return debian/changelog: what changed is in CHANGELOG.md."""
    when = email.utils.formatdate(float(seconds))
    return (
        f"aiovblk ({version}-1~deb{release.number}u1) {release.suite}; urgency=medium\n\n"
        f"  * Release {version}; CHANGELOG.md of the source says what is new.\n\n"
        f" -- The aiovblk developers <aiovblk@localhost>  {when}\n"
    )


def substvars(chosen: Plan, release: Release) -> str:
    """Return what debian/control names as ${aiovblk:Depends} and ${aiovblk:Recommends}."""
    python = (f"python3 (>= {release.python})", f"python3 (<< {release.next_python})")
    return (
        f"aiovblk:Depends={', '.join([*python, *chosen.depends])}\n"
        f"aiovblk:Recommends={', '.join(chosen.recommends)}\n"
    )
