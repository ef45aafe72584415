"""Find and download Debian's kernel packages with apt-get, without installing anything.

Three places are tried in order, because each fails somewhere:

1. the machine's own package lists, which may be missing (a fresh container), older than the
   archive, or without the wanted kernel;
2. on Debian, a private apt state in the cache, which adds other Debian suites from the mirror that
   the machine itself uses.  /etc/apt is read, never written;
3. elsewhere (Ubuntu), the machine's generic kernel that is nearest to the wanted version.
"""

import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from .console import VMError, find_program, say


@dataclass(frozen=True, slots=True)
class Origin:
    """Where Debian has the kernels of one series."""

    release: str
    """The release that they run with: the one they are of, or whose backports have them."""
    suites: tuple[str, ...]
    """Where apt finds them on any mirror, best first."""


ORIGINS = {
    "6.1": Origin("bookworm", ("bookworm",)),
    # The key of these backports is on every Debian 12, and their list is small.
    "6.12": Origin("trixie", ("bookworm-backports", "trixie")),
    # Backports have one series at a time: when they go on to the next, so must this line.
    "7.3": Origin("trixie", ("trixie-backports",)),
}

# Besides a release's name, sources may call it by its place in the row of releases.
SUITE_ALIASES = {"stable", "oldstable", "oldoldstable"}


@dataclass(frozen=True, slots=True)
class Package:
    """One package, in one version, as one apt configuration knows it."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Apt:
    """An apt configuration: the machine's own, or one with options of ours."""

    options: tuple[str, ...] = ()

    def query(self, *arguments: str) -> str:
        """Return what apt-cache prints, empty when it finds nothing."""
        command = ["apt-cache", *self.options, *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout

    def update(self) -> None:
        """Fetch the package lists; a list that cannot be had shows as a package not found."""
        command = ["apt-get", "update", "-qq", *self.options]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)

    def download(self, packages: Sequence[Package], into: Path) -> list[Path]:
        """Download `packages` into the empty directory `into`; empty when apt could not."""
        names = [f"{package.name}={package.version}" for package in packages]
        # apt's own unprivileged user could not write into a directory of root's.
        command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *self.options]
        done = subprocess.run(
            [*command, *names], cwd=into, stdin=subprocess.DEVNULL, capture_output=True
        )
        return sorted(into.glob("*.deb")) if done.returncode == 0 else []


def fetch(kernel: str, state: Path, into: Path) -> list[Path]:
    """Download the packages of `kernel` ("6.1") into the directory `into`.

    Args:
        kernel: the series, a key of ORIGINS.
        state: a directory for the private apt's lists, kept between calls.
        into: an empty directory.

    Returns:
        The downloaded files.

    Raises:
        VMError: this machine has no apt, or no place has the kernel.
    """
    if not find_program("apt-get"):
        raise VMError(
            f"kernel packages are fetched with apt-get, which is not here; on this system load "
            f"nbd (modprobe nbd) and use --kernel host, or run Debian {kernel} elsewhere"
        )
    if platform.machine() != "x86_64":
        raise VMError(f"only x86-64 is supported, this is {platform.machine()}; use --kernel host")
    for apt in chain([Apt()], private_apts(kernel, state)):
        packages = debian_packages(apt, kernel)
        if packages and (files := download(apt, packages, into)):
            return files
    packages = nearest_packages(Apt(), kernel)
    if packages and (files := download(Apt(), packages, into)):
        return files
    raise VMError(
        f"apt has no kernel {kernel}; run apt-get update, or add a Debian mirror with "
        f"{' or '.join(ORIGINS[kernel].suites)} to its sources"
    )


def download(apt: Apt, packages: Sequence[Package], into: Path) -> list[Path]:
    """Download `packages`, saying so: it is the slow part of a first run."""
    say(f"downloading {packages[0].name} {packages[0].version}")
    return apt.download(packages, into)


def debian_packages(apt: Apt, kernel: str) -> list[Package]:
    """Return what Debian's meta package stands for in the series `kernel`, newest first in apt.

    Of 6.1 and 6.12 that is one package; of 7.3 it is one that depends on three more, which have the
    image, the modules, and lists of them.
    """
    for line in apt.query("madison", "linux-image-amd64").splitlines():
        version = line.split("|")[1].strip()
        if version.startswith(f"{kernel}."):
            parts = parts_of(apt, Package("linux-image-amd64", version))
            # What has no number in its name is another meta package.
            return [package for package in parts if re.search(r"-\d", package.name)]
    return []


def parts_of(apt: Apt, package: Package) -> list[Package]:
    """Return all that `package` needs in one version alone, as parts of a whole do, nearest first.

    The programs that install a kernel may have any version, and are not among them.
    """
    parts = [package]
    for part in parts:  # grows meanwhile
        record = apt.query("show", f"{part.name}={part.version}")
        depends = re.search(r"^Depends: (.*)$", record, re.MULTILINE)
        for word in depends[1].split(", ") if depends else ():
            exact = re.fullmatch(r"(\S+) \(= (\S+)\)", word)
            if exact and Package(*exact.groups()) not in parts:
                parts.append(Package(*exact.groups()))
    return parts[1:]


def nearest_packages(apt: Apt, kernel: str) -> list[Package]:
    """Return Ubuntu's generic kernel nearest to `kernel`, with the packages of its modules."""
    names = apt.query("search", "--names-only", r"^linux-image-[0-9.]+-[0-9]+-generic$")
    releases = re.findall(r"^linux-image-(\S+)", names, re.MULTILINE)
    if not releases:
        return []
    release = min(releases, key=lambda release: distance(release, kernel))
    say(f"apt has no kernel {kernel} here, the nearest is {release}")
    wanted = [f"linux-{part}-{release}" for part in ("image", "modules", "modules-extra")]
    lines = [apt.query("madison", name).partition("\n")[0].split("|") for name in wanted]
    return [Package(line[0].strip(), line[1].strip()) for line in lines if len(line) > 1]


def distance(release: str, kernel: str) -> tuple[int, list[int]]:
    """Order releases by how far their series is from `kernel`, newer builds first."""
    numbers = [int(number) for number in re.findall(r"\d+", release)]
    major, minor = (int(number) for number in kernel.split("."))
    return abs((numbers[0] - major) * 100 + numbers[1] - minor), [-number for number in numbers]


def private_apts(kernel: str, state: Path) -> Iterator[Apt]:
    """Yield an updated private apt for each Debian suite that has `kernel`."""
    for suite in ORIGINS[kernel].suites:
        sources = list(sources_for(suite))
        for number, (suffix, text) in enumerate(sources):
            home = state / f"{suite}-{number}"
            (home / "lists" / "partial").mkdir(parents=True, exist_ok=True)
            (home / "archives" / "partial").mkdir(parents=True, exist_ok=True)
            source = home / f"kernel{suffix}"
            source.write_text(text)
            apt = Apt(options_for(home, source))
            apt.update()
            yield apt


def options_for(home: Path, source: Path) -> tuple[str, ...]:
    """Return the options that keep an apt run inside `home`, with `source` its only source."""
    settings = {
        "Dir::State": home,
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": home,
        "Dir::Etc::SourceList": source,
        "Dir::Etc::SourceParts": "-",
        "APT::Sandbox::User": "root",
    }
    return tuple(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))


def sources_for(suite: str) -> Iterator[tuple[str, str]]:
    """Yield (file suffix, text) of a source for `suite` from each mirror this Debian uses."""
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian":
        return
    known = SUITE_ALIASES | {release.get("VERSION_CODENAME", "")}
    etc = Path("/etc/apt")
    for path in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))]:
        if path.exists():
            yield from one_line_sources(path.read_text(), known, suite)
    for path in sorted(etc.glob("sources.list.d/*.sources")):
        yield from deb822_sources(path.read_text(), known, suite)


def one_line_sources(text: str, known: set[str], suite: str) -> Iterator[tuple[str, str]]:
    """Yield `deb` lines of the main archive with `suite` in place of their own."""
    pattern = re.compile(r"^deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$", re.MULTILINE)
    for options, uri, own_suite, components in pattern.findall(text):
        if own_suite in known and "main" in components.split():
            yield ".list", f"deb {options}{uri} {suite} main\n"


def deb822_sources(text: str, known: set[str], suite: str) -> Iterator[tuple[str, str]]:
    """Yield paragraphs of the main archive with `suite` in place of their own."""
    for paragraph in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*)$", paragraph, re.MULTILINE))
        if (
            "deb" in fields.get("Types", "").split()
            and known.intersection(fields.get("Suites", "").split())
            and "main" in fields.get("Components", "").split()
            and fields.get("Enabled", "yes") != "no"
        ):
            moved = re.sub(r"(?m)^Suites:.*$", f"Suites: {suite}", paragraph)
            yield ".sources", re.sub(r"(?m)^Components:.*$", "Components: main", moved) + "\n"
