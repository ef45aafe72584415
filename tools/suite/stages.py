"""What each stage runs, and which stages a size has.

A stage yields steps, in the order in which they begin; two run at a time. It is asked for in one of
three ways, its scope:

    part  the user named the stage, perhaps with paths: one Python, one kernel
    test  what a change must pass to land
    all   the whole matrix
"""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vmrun import roots

from . import environments
from .environments import REPORTS, ROOT, junit, pytest, python
from .steps import Step

Scope = Literal["part", "check", "test", "all"]

KERNELS = ("6.1", "6.12")
"""Those of Debian's releases, bookworm and trixie."""
BACKPORT = "7.3"
"""Trixie's newer one.  In the whole matrix the core and all tests of ublk run on it once, by
netlink and on the newest Python, as they go with such a kernel: its ublk driver is the next."""
ATTACHMENTS = ("ioctl", "netlink")
SYSTEMD_PYTHONS = {"6.1": "3.11", "6.12": "3.13", BACKPORT: "3.13"}  # what bookworm and trixie have
WITHOUT_PLUGINS = ("-p", "no:hypothesispytest", "-p", "no:xdist", "-p", "no:random_order")
"""pytest's plugins that no kernel test uses, and that take a guest seconds to import."""
VM_TIMEOUT = float(os.environ.get("VM_TIMEOUT") or 4500)
"""Seconds for a virtual machine."""
TIMEOUT_VARIABLE = {"VM_TIMEOUT": f"{VM_TIMEOUT:.0f}"}
"""How tools/vm gets to know: in the command it would make a resumed run repeat what has passed."""
VM_DEADLINE = VM_TIMEOUT + 120
"""Seconds for a step in one: it ends by itself before, and there is something to compile."""


@dataclass(slots=True)
class Plan:
    """What is asked of the stages, and what they cannot do here."""

    scope: Scope
    words: Sequence[str] = ()
    """Paths and options for pytest, of a part."""
    left_out: list[str] = field(default_factory=list)

    @property
    def pythons(self) -> list[str]:
        """Return the Pythons of a stage that runs on the oldest and the newest in the matrix."""
        if self.scope in ("part", "check"):
            return [environments.default()]
        return environments.oldest_and_newest()

    @property
    def kernels(self) -> list[str]:
        """Return the kernels to test on: $KERNELS, else the releases', of which a part has one."""
        return chosen_kernels() or list(KERNELS[-1:] if self.scope == "part" else KERNELS)

    def paths(self, default: str) -> Sequence[str]:
        """Return the words for pytest, with `default` where no path is among them."""
        named = [word for word in self.words if Path(word.partition("::")[0]).exists()]
        return self.words if named else [default, *self.words]


def chosen_kernels() -> list[str]:
    """Return the kernels that $KERNELS names; empty where it is not set."""
    return os.environ.get("KERNELS", "").split()


def lint(plan: Plan) -> Iterator[Step]:
    """Check style, types and spelling, once: the oldest Python is named in pyproject.toml."""
    names = ("ruff check", "ruff format --check", "mypy --strict", "codespell_lib")
    command = [environments.interpreter(environments.default()), "-m"]
    for name in names:
        yield Step("lint", name, [*command, *name.split(), *plan.words])


def docs(plan: Plan) -> Iterator[Step]:
    """Build the site anew: each warning, such as a link that leads nowhere, is an error."""
    command = [environments.interpreter(environments.default()), "-m", "sphinx"]
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--fresh-env", *plan.words]
    yield Step("docs", "site", [*command, *options, "docs", "build/docs/html"])


def unit(plan: Plan) -> Iterator[Step]:
    """Run the tests that need no kernel, on all processors, one Python after the other.

    Their long form repeats with more seeds and sizes what the short one does, and hardly depends on
    the version: in the whole matrix the newest runs it, the others what is run every day.
    """
    versions = unit_pythons(plan)
    long = versions[-1] if plan.scope == "all" else None
    # The words may name a single test, which starts sooner without helpers. Tests wait, too: for
    # threads and processes that they start; more of them at a time than there are processors.
    processes = 0 if plan.words else 2 * (os.cpu_count() or 1)
    for number, version in enumerate(versions):
        options, kind, variables = [], "", {}
        if version == long:
            options, kind = ["--long"], "long "
        else:
            # The checks of the debug mode for each block of memory cost a fifth of the time.
            variables = {"PYTHONMALLOC": "pymalloc"}
            options = unit_options(plan.scope, number, len(versions))
        name = f"{kind}unit tests, Python {version}"
        command = pytest(version, name, [*plan.paths("tests/unit"), *options], parallel=processes)
        yield Step("unit", name, command, variables=variables, alone=not plan.words)


def unit_options(scope: Scope, number: int, count: int) -> list[str]:
    """Return the options of pytest for the unit tests on the Python `number` of `count`."""
    if scope == "check":
        return ["--loops", "either", "-m", "not slow"]
    if scope == "part" or count == 1:
        return []
    # On two Pythons that follow each other, each test runs on both loops.
    either = ["--loops", "either", *half(number)]
    return [*either, "--slow", "half"] if scope == "test" else either


def half(number: int) -> list[str]:
    """Return the option of pytest for the half that the run `number` of several does."""
    return ["--half", ("first", "second")[number % 2]]


def unit_pythons(plan: Plan) -> list[str]:
    """Return the Pythons for unit tests, which in the whole matrix are all."""
    if plan.scope != "all":
        return plan.pythons
    missing = set(environments.wanted()) - set(environments.available())
    plan.left_out += [f"unit tests, Python {each}: it is not here" for each in sorted(missing)]
    return environments.available()


def tools(plan: Plan) -> Iterator[Step]:
    """Test tools/vm and tools/test, before they are relied on."""
    version = environments.default()
    words = plan.paths("tests/tools")
    yield Step("tools", "tools", pytest(version, "tools", words))


def interop(plan: Plan) -> Iterator[Step]:
    """Run the tests with other people's NBD programs."""
    versions = plan.pythons if plan.scope == "all" else plan.pythons[-1:]
    for version in versions:
        name = f"interop, Python {version}"
        yield Step("interop", name, pytest(version, name, plan.paths("tests/interop")))


@dataclass(frozen=True, slots=True)
class Guest:
    """A virtual machine with kernel tests."""

    kernel: str
    python: str
    attach: str
    """One of ATTACHMENTS."""
    half: Sequence[str] = ()
    """The option of pytest, where there is one."""
    marker: str = ""
    """Of the tests to run, for pytest's -m; all if it is empty."""
    tests: str = "kernel tests"
    """What to call them."""


def kernel(plan: Plan) -> Iterator[Step]:
    """Run the kernel tests: the core on each kernel, or all on each kernel and Python."""
    for guest in matrix(plan) if plan.scope == "all" else one_for_each_kernel(plan):
        yield kernel_step(plan, guest)


def one_for_each_kernel(plan: Plan) -> Iterator[Guest]:
    """Yield guests with the oldest Python and ioctl first, the newest and netlink last."""
    kernels, pythons = plan.kernels, plan.pythons
    core = ("core", "kernel core") if plan.scope == "test" else ()
    for number, name in enumerate(kernels):
        version = pythons[0 if number == 0 and len(kernels) > 1 else -1]
        part = half(number) if len(kernels) > 1 else []
        yield Guest(name, version, ATTACHMENTS[name != KERNELS[0]], part, *core)


def matrix(plan: Plan) -> Iterator[Guest]:
    """Yield guests with each kernel and Python, those first that take longest.

    Over the kernels, and over the Pythons of one kernel, both ways of attaching alternate. The
    halves alternate over the Pythons; over the kernels where there is one Python. On the newest
    Python, the tests of ublk have a guest of their own on kernels with the driver.
    """
    kernels = plan.kernels if chosen_kernels() else [*plan.kernels, BACKPORT]
    for place, version in reversed([*enumerate(plan.pythons)]):
        for number, name in enumerate(kernels):
            attach = ATTACHMENTS[(number + place) % 2]
            part = half(place if len(plan.pythons) > 1 else number)
            if version != plan.pythons[-1]:
                if name != BACKPORT:
                    # What does not depend on the version, and takes long here, runs on the newest.
                    yield Guest(name, version, attach, part, "not newest_python")
            elif name == BACKPORT:
                yield Guest(name, version, "netlink", part, "core or ublk")
            elif name == KERNELS[0]:
                yield Guest(name, version, attach, part)
            else:
                yield Guest(name, version, attach, part, "not ublk")
                yield Guest(name, version, attach, part, "ublk", "kernel tests of ublk")


def kernel_step(plan: Plan, guest: Guest) -> Step:
    """Return the step of the kernel tests in one guest."""
    name = f"{guest.tests}, Linux {guest.kernel}, Python {guest.python}"
    words = [*WITHOUT_PLUGINS, "--attach", guest.attach, *guest.half, *plan.paths("tests/kernel")]
    if plan.scope == "all":
        words += ["--long"]
    elif plan.scope == "test" and guest.half:
        words += ["--slow", "half"]
    if guest.marker:
        words += ["-m", guest.marker]
    # The debug mode costs a third of a guest's time, so it has its place in the whole matrix.
    debug = plan.scope == "all" and guest.python != plan.pythons[-1]
    command = [
        *("tools/vm", "run", "--kernel", guest.kernel, "--smp", "2", "--rw", f"{REPORTS}", "--"),
        *pytest(guest.python, name, words, debug=debug),
    ]
    prepared = compiled(guest.python, "tests/kernel", command)
    return Step("kernel", name, prepared, VM_DEADLINE, variables=TIMEOUT_VARIABLE)


def compiled(version: str, tests: str, command: Sequence[str]) -> list[str]:
    """Return a command that compiles the modules, and then runs `command`, a guest's.

    A guest keeps nothing of what it compiles, which takes it twenty times as long. pytest compiles
    `tests` in its own way, also when it only collects them. What fails here fails in the guest.
    """
    interpreter = shlex.join(python(version))
    modules = f"{interpreter} -m compileall -q aiovblk tests"
    collected = f"{interpreter} -m pytest --co -q {tests} >/dev/null 2>&1"
    # Images of containers set it.
    script = f'unset PYTHONDONTWRITEBYTECODE; {modules}; {collected}; exec "$@"'
    return ["sh", "-c", script, "sh", *command]


def systemd(plan: Plan) -> Iterator[Step]:
    """Run the tests of the unit and with udev, one boot per kernel."""
    here = environments.available()
    for kernel in plan.kernels:
        version = SYSTEMD_PYTHONS.get(kernel, "")
        name = f"systemd, Linux {kernel}"
        if version not in here:
            plan.left_out.append(f"{name}: it needs the packages of its Python {version}")
            continue
        yield in_systemd_guest("systemd", name, kernel, plan.paths("tests/systemd"))


def in_systemd_guest(stage: str, name: str, kernel: str, words: Sequence[str]) -> Step:
    """Return the step of a pytest in the Debian of a kernel, booted by systemd."""
    version = SYSTEMD_PYTHONS[kernel]
    # The guest's own interpreter, with the packages that are here for the same version.
    packages = Path(f".venvs/{version}").resolve() / f"lib/python{version}/site-packages"
    command = [
        *("tools/vm", "run", "--systemd", "--kernel", kernel, "--ro", f"{packages}"),
        *("--rw", f"{REPORTS}", "--smp", "2", "--"),
        *("python3", "-m", "pytest", "-p", "no:cacheprovider", *WITHOUT_PLUGINS),
        *(f"--junitxml={junit(name)}", *words),
    ]
    variables = {"PYTHONPATH": f"{ROOT}:{packages}", **TIMEOUT_VARIABLE}
    prepared = compiled(version, f"tests/{stage}", command)
    return Step(stage, name, prepared, VM_DEADLINE, variables=variables)


def rgw(plan: Plan) -> Iterator[Step]:
    """Run the tests with Ceph's gateway."""
    for version in plan.pythons:
        name = f"Ceph's gateway, Python {version}"
        yield Step("rgw", name, pytest(version, name, plan.paths("tests/rgw")))


def release(plan: Plan) -> Iterator[Step]:
    """Test sdist and wheel as users install them, and the dashboard with a real Prometheus."""
    version = environments.default()
    words = plan.paths("tests/release")
    yield Step("release", "release", pytest(version, "release", words))


def debian(plan: Plan) -> Iterator[Step]:
    """Build the packages for Debian, and install and use each in its release, under its kernel."""
    wheel = Step("debian", "wheel for the packages", ["tools/packages", "python"])
    yield wheel
    installed = []
    for kernel in plan.kernels:
        suite, version = roots.SUITES.get(kernel, ""), SYSTEMD_PYTHONS.get(kernel, "")
        name = f"package for Debian {suite}, Linux {kernel}"
        if version not in environments.available():
            plan.left_out.append(f"{name}: it needs the packages of its Python {version}")
            continue
        command = ["tools/packages", "deb", suite, "--depends"]
        built = Step("debian", f"{name}, built", command, after=wheel.name)
        yield built
        guest = in_systemd_guest("debian", name, kernel, plan.paths("tests/debian"))
        installed.append(replace(guest, after=built.name))
    yield from installed


Stage = Callable[[Plan], Iterator[Step]]

STAGES: dict[str, Stage] = {
    "lint": lint,
    "docs": docs,
    "unit": unit,
    "tools": tools,
    "interop": interop,
    "kernel": kernel,
    "systemd": systemd,
    "rgw": rgw,
    "release": release,
    "debian": debian,
}

SIZES: dict[Scope, Sequence[str]] = {
    "check": ("lint", "unit"),
    "test": ("lint", "docs", "unit", "tools", "interop", "kernel"),
    "all": tuple(STAGES),
}
