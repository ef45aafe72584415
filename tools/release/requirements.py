"""Which Python packages the command needs, and which of them a Debian release has new enough.

What Debian has in a version that satisfies all that is asked of it is left to Debian, which keeps
it secure. The others go into our package: uvloop above all.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from .console import run

EXTRAS = "cli,http,metrics,objectstore"
"""The extras of what the command can serve: all but those for programs (otel), and boto3."""

DEBIAN_NAMES = {"attrs": "python3-attr", "markdown-it-py": "python3-markdown-it"}
"""Debian's packages that are not called python3-NAME; what is not found is brought."""

OURS = "aiovblk"


@dataclass(frozen=True, slots=True)
class Need:
    """One Python package, and what asks for it."""

    name: str
    version: str
    """The newest on PyPI that all others agree with."""
    askers: tuple[tuple[str, Requirement], ...]
    """The packages that ask for it, and what each asks."""

    @property
    def debian_name(self) -> str:
        """The Debian package that has it, if one does."""
        return DEBIAN_NAMES.get(self.name, f"python3-{self.name}")

    def asked_by(self, packages: Collection[str]) -> list[Requirement]:
        """Return what these packages ask of it."""
        return [requirement for asker, requirement in self.askers if asker in packages]


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each package comes from in one release of Debian."""

    brought: Sequence[Need]
    """Those that go into our package."""
    depends: Sequence[str]
    """Relations to Debian's packages without which nothing works, with lower bounds."""
    recommends: Sequence[str]
    """Relations to those that only an extra asks for."""


def resolve(python: Sequence[str], wheel: Path, version: str) -> list[Need]:
    """Return what the wheel needs with EXTRAS, in wheels for the interpreter `python`.

    Args:
        python: the command that starts the interpreter, in an environment with pip.
        wheel: our own.
        version: of Python, such as 3.11, to evaluate markers for.

    Raises:
        PackagingError: pip finds no packages that agree, or one has no wheel.
    """
    report = run(
        [
            *(*python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--dry-run", "--ignore-installed", "--only-binary=:all:", "--report", "-"),
            f"{wheel}[{EXTRAS}]",
        ]
    )
    found = json.loads(report[report.index("{") : report.rindex("}") + 1])
    return needs([each["metadata"] for each in found["install"]], version)


def needs(metadata: Iterable[Mapping[str, object]], version: str) -> list[Need]:
    """Return what pip's report has on each package but our own, by name."""
    askers: dict[str, list[tuple[str, Requirement]]] = {}
    versions: dict[str, str] = {}
    for each in metadata:
        asker = canonicalize_name(str(each["name"]))
        versions[asker] = str(each["version"])
        lines = each.get("requires_dist", [])
        assert isinstance(lines, list)  # by pip's specification of the report
        for requirement in map(Requirement, lines):
            if _applies(requirement, version):
                name = canonicalize_name(requirement.name)
                askers.setdefault(name, []).append((asker, requirement))
    return [
        Need(name, versions[name], tuple(askers.get(name, [])))
        for name in sorted(versions)
        if name != OURS
    ]


def _applies(requirement: Requirement, version: str) -> bool:
    """Whether a requirement holds on this Python, of the base or of one of EXTRAS."""
    if requirement.marker is None:
        return True
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    return any(
        requirement.marker.evaluate(environment | {"extra": extra})
        for extra in ("", *EXTRAS.split(","))
    )


def plan(wanted: Sequence[Need], debian_version: Callable[[str], str | None]) -> Plan:
    """Decide what is left to Debian.

    A package is brought if what ours, and others that are brought, ask of it is not what Debian
    has. What a package of Debian's needs is Debian's affair.

    Args:
        wanted: all packages that :func:`resolve` found.
        debian_version: returns the version of a Debian package, None if there is none.
    """
    has = {need.name: upstream_version(debian_version(need.debian_name) or "") for need in wanted}
    brought = {OURS}
    while True:
        more = {
            need.name for need in wanted if not _satisfies(has[need.name], need.asked_by(brought))
        }
        if more <= brought:
            break
        brought |= more
    always = _always_needed(wanted, brought)
    left = [need for need in wanted if need.name not in brought and need.asked_by(brought)]
    return Plan(
        [need for need in wanted if need.name in brought],
        [_relation(need, brought) for need in left if need.name in always],
        [_relation(need, brought) for need in left if need.name not in always],
    )


def _satisfies(version: Version | None, requirements: Sequence[Requirement]) -> bool:
    """Whether a version, or none at all, is what requirements ask for, if there are any."""
    if version is None:
        return not requirements
    return all(each.specifier.contains(version) for each in requirements)


def _always_needed(wanted: Sequence[Need], brought: Collection[str]) -> set[str]:
    """Return what is needed without extras: by our package, and by what it brings for that."""
    always = {OURS}
    while True:
        found = {
            need.name
            for need in wanted
            for asker, requirement in need.askers
            if asker in always & set(brought) and "extra" not in str(requirement.marker)
        }
        if found <= always:
            return always
        always |= found


def _relation(need: Need, brought: Collection[str]) -> str:
    """Return the Debian relation to a package: its name, with the highest lower bound."""
    bounds = [
        Version(each.version)
        for requirement in need.asked_by(brought)
        for each in requirement.specifier
        if each.operator == ">="
    ]
    return f"{need.debian_name} (>= {max(bounds)})" if bounds else need.debian_name


def upstream_version(debian: str) -> Version | None:
    """Return the version of upstream in a Debian version, such as 1:0.17.0+ds1-2+b2."""
    plain = re.sub(r"^\d+:|-[^-]*$", "", debian)
    try:
        return Version(re.split(r"[+~]", plain)[0])
    except InvalidVersion:
        return None
