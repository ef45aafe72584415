"""The wheel and the sdist, as somebody installs them: without extras, outside of the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from release import distributions  # noqa: E402 (tools/ is not on the path before)

PATIENCE = 120.0


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel and what it requires."""

    directory: Path

    def run(self, *words: str, status: int) -> tuple[str, str]:
        """Run a program of the environment; return what it printed, stdout and stderr."""
        program, *arguments = words
        done = subprocess.run(
            [self.directory / "bin" / program, *arguments],
            cwd=self.directory,  # not in the checkout, which has the package as well
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={"PATH": f"{self.directory}/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        assert done.returncode == status, done
        return done.stdout, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist beside it."""
    return distributions.build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    directory = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    made = Installed(directory)
    made.run("python", "-m", "pip", "install", "-q", f"{wheel}", status=0)
    return made


def test_wheel_requires_anyio_and_uvloop_alone(installed: Installed) -> None:
    out, _ = installed.run("python", "-m", "pip", "list", "--format=freeze", status=0)
    names = {line.partition("==")[0] for line in out.splitlines()}
    assert {"aiovblk", "anyio", "uvloop"} <= names
    assert names <= {"aiovblk", "anyio", "uvloop", "idna", "typing_extensions", "pip", "setuptools"}


def test_version_is_that_of_the_package(installed: Installed, wheel: Path) -> None:
    out, _ = installed.run("aiovblk", "--version", status=0)
    assert out.split() == ["aiovblk", wheel.name.split("-")[1]]


def commands(installed: Installed) -> list[str]:
    """The commands, from the help of the whole."""
    out, _ = installed.run(
        *("python", "-c"),
        "from aiovblk import cli\n"
        "kinds = [each.choices for each in cli.make_parser()._actions if each.choices]\n"
        "print(*kinds[-1])",
        status=0,
    )
    return out.split()


def test_each_command_explains_itself(installed: Installed) -> None:
    names = commands(installed)
    assert {"mount", "serve", "unmount", "list", "top", "doctor", "copy", "create"} <= set(names)
    for name in names:
        out, err = installed.run("aiovblk", name, "--help", status=0)
        assert out.startswith(f"usage: aiovblk {name}")
        assert err == ""


STORE = "the package obstore is not installed; pip install 'aiovblk[objectstore]'"
WEB = "the package aiohttp is not installed; pip install 'aiovblk[http]'"


@pytest.mark.parametrize(
    ("words", "lacks"),
    [
        (("mount", "s3://bucket/disk?size=1M"), STORE),
        (("mount", "https://host/image"), WEB),
        (("serve", "gs://bucket/disk?size=1M"), STORE),
        (("serve", "https://host/image"), WEB),
        (("copy", "memory:1M", "az://bucket/disk"), STORE),
        (("copy", "https://host/image", "memory:1M"), WEB),
        (("create", "folder:disk?size=1M"), STORE),
        (("snapshot", "folder:disk", "now"), STORE),
        (("snapshot", "folder:disk"), STORE),
        (("clone", "folder:disk?snapshot=now", "folder:other"), STORE),
        (("gc", "folder:disk"), STORE),
        (("check", "folder:disk"), STORE),
    ],
    ids=" ".join,
)
def test_command_says_which_extra_it_lacks(
    installed: Installed, words: tuple[str, ...], lacks: str
) -> None:
    out, err = installed.run("aiovblk", *words, status=1)
    assert out == ""
    assert re.fullmatch(rf"aiovblk: [^\n]*{re.escape(lacks)}\n", err)


def test_what_needs_no_extra_works(installed: Installed) -> None:
    source, target = (installed.directory / name for name in ("source", "target"))
    source.write_bytes(b"content" * 1024)
    installed.run("aiovblk", "copy", f"file:{source}", f"file:{target}", status=0)
    assert target.read_bytes() == source.read_bytes()
    for words in (("list",), ("top", "--once", "--interval", "0.01")):
        out, _ = installed.run("aiovblk", *words, status=0)
        assert out.startswith("DEVICE")


@pytest.mark.parametrize(
    ("call", "extra"),
    [("prometheus_collector({})", "metrics"), ("register_otel({})", "otel")],
)
def test_metrics_say_which_extra_they_lack(installed: Installed, call: str, extra: str) -> None:
    code = f"from aiovblk import metrics\nmetrics.{call}"
    _, err = installed.run("python", "-c", code, status=1)
    assert f"pip install 'aiovblk[{extra}]'" in err.splitlines()[-1]


def test_readme_on_pypi_has_no_relative_link(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode().partition("\n\n")[2]
    links = re.findall(r"\]\(([^)]+)\)", text)
    version = wheel.name.split("-")[1]
    assert any(link.endswith(f"/blob/v{version}/docs/architecture.md") for link in links)
    assert [link for link in links if not re.match(r"https?://|mailto:|#", link)] == []


def test_sdist_has_what_tests_and_packages_need(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        *("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "tools/packages"),
        *("packaging/aiovblk@.service", "tests/unit/cli/test_top.py", "aiovblk/py.typed"),
    ):
        assert name in names
    assert [name for name in names if name.startswith((".venv", "build/", "dist/", ".git/"))] == []


def test_wheel_has_the_package_and_its_license_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "aiovblk/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {
        "aiovblk",
        f"{'-'.join(wheel.name.split('-')[:2])}.dist-info",
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
